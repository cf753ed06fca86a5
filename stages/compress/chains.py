"""Which chains a configuration allows for a section of the archive."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from model.archive import all_chains
from model.transforms import Chain, Lzma, Rans, Zstd

if TYPE_CHECKING:
    from stages.compress.config import Config


def chains_for(config: Config) -> Callable[[str, int], Sequence[Chain]]:
    """What `write_archive` asks: (kind, bits) -> candidates."""
    wanted = {"zstd": Zstd, "lzma": Lzma, "rans": Rans}.get(config.codec, object)

    def candidates(kind: str, bits: int) -> Sequence[Chain]:
        chains = all_chains(kind, bits, config.level)
        return [c for c in chains if any(isinstance(step, wanted) for step in (c.codes, *c.bytes))] or chains

    return candidates
