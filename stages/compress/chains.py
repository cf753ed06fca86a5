"""Which chains a configuration allows for a section of the archive."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from model.archive import all_chains, planes_chain
from model.transforms import Chain, Integers, Lzma, Rans, Xz, Zlib, Zstd

if TYPE_CHECKING:
    from stages.compress.config import Config


def chains_for(config: Config) -> Callable[[str, int], Sequence[Chain]]:
    """What `write_archive` asks: (kind, bits) -> candidates."""

    def candidates(kind: str, bits: int) -> Sequence[Chain]:
        if config.codec == "auto":
            return all_chains(kind, bits, config.level)
        if config.codec == "rans":  # a coder of codes; floats go as with auto
            return [Chain(Integers(), Rans(bits))] if kind == "codes" else all_chains(kind, bits, config.level)
        if config.codec == "zstd":
            return [planes_chain(kind, bits, Zstd(config.level))]
        if config.codec == "lzma":
            return [planes_chain(kind, bits, Lzma())]
        # The published runs compress codes and floats as they lie.
        return [planes_chain(kind, bits, Xz(config.level) if config.codec == "xz" else Zlib(config.level))]

    return candidates
