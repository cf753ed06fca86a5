"""Which chains a configuration allows for a section of the archive."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from model.archive import all_chains
from model.transforms import ByteStep, Chain, Lzma, Planes, Rans, Xz, Zlib, Zstd

if TYPE_CHECKING:
    from stages.compress.config import Config


def chains_for(config: Config) -> Callable[[str, int], Sequence[Chain]]:
    """What `write_archive` asks: (kind, bits) -> candidates."""
    published: dict[str, ByteStep] = {"xz": Xz(config.level), "zlib": Zlib(config.level)}
    wanted = {"zstd": Zstd, "lzma": Lzma, "rans": Rans}.get(config.codec, object)

    def candidates(kind: str, bits: int) -> Sequence[Chain]:
        if config.codec in published:  # the published runs compress codes and floats as they lie
            planes = next(c for c in all_chains(kind, bits) if isinstance(c.codes, Planes))
            return [Chain(planes.tensor, planes.codes, (published[config.codec],))]
        chains = all_chains(kind, bits, config.level)
        return [c for c in chains if any(isinstance(step, wanted) for step in (c.codes, *c.bytes))] or chains

    return candidates
