"""Token shards in the challenge's format: 256 little-endian int32 of header, then little-endian uint16 token ids.

Header: [0] magic 20240520, [1] version 1, [2] number of tokens, the rest zero. A shard is verified when it is opened,
because a wrong token is not a crash but a wrong score.
"""

from __future__ import annotations

import os
from pathlib import Path
from types import TracebackType

import numpy as np

MAGIC = 20240520
VERSION = 1
HEADER_BYTES = 256 * 4
MAX_TOKENS = 2**31 - 1  # the header's count is a signed 32-bit integer

_CHECK_TOKENS = 1 << 22  # ids are checked in blocks of 8 MiB: a block stays in cache and memory use is bounded


def write_shard(path: Path, tokens: np.ndarray) -> None:
    """Write the ids `tokens` [N] as one shard; the file appears whole or not at all. Raises ValueError."""
    with ShardWriter(path) as writer:
        writer.append(tokens)


class ShardWriter:
    """Writes one shard piece by piece, so that a shard of any size needs little memory.

    The file appears under its name when the `with` block ends; if the block raises, nothing is left behind.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.tokens = 0
        self._partial = path.with_name(path.name + ".partial")

    def __enter__(self) -> ShardWriter:
        self._file = self._partial.open("wb")
        self._file.write(bytes(HEADER_BYTES))
        return self

    def append(self, tokens: np.ndarray) -> None:
        """Add the ids `tokens` [N]: any integer dtype, each 0 .. 65535. Raises ValueError."""
        if tokens.ndim != 1 or tokens.dtype.kind not in "iu":
            raise ValueError(f"a shard holds a flat list of integers; got {tokens.dtype} of shape {tokens.shape}")
        if tokens.dtype != np.uint16 and tokens.size and not 0 <= tokens.min() <= tokens.max() <= 0xFFFF:
            raise ValueError(
                f"a shard holds ids 0 .. 65535; got {tokens.min()} .. {tokens.max()}; use a vocabulary of at most 65536"
            )
        if self.tokens + tokens.size > MAX_TOKENS:
            raise ValueError(f"a shard holds at most {MAX_TOKENS:,} tokens; write smaller document shards")
        self._file.write(tokens.astype("<u2", copy=False).tobytes())
        self.tokens += tokens.size

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        try:
            if kind is None:
                header = np.zeros(256, dtype="<i4")
                header[:3] = MAGIC, VERSION, self.tokens
                self._file.seek(0)
                self._file.write(header.tobytes())
            self._file.close()
            if kind is None:
                os.replace(self._partial, self.path)
        finally:
            self._file.close()
            self._partial.unlink(missing_ok=True)


def read_count(path: Path) -> int:
    """The number of tokens of a shard, from its verified header and size, ids unread. Raises ValueError."""
    size = path.stat().st_size
    if size < HEADER_BYTES:
        raise ValueError(
            f"a shard starts with {HEADER_BYTES} bytes of header; {path.name} has {size} bytes: it is truncated or no "
            f"shard; get it again"
        )
    header = np.fromfile(path, dtype="<i4", count=3)
    magic, version, count = (int(x) for x in header)
    if magic != MAGIC or version != VERSION:
        raise ValueError(
            f"a shard's header says magic {MAGIC}, version {VERSION}; {path.name} says magic {magic}, version "
            f"{version}: it is corrupted or no shard; get it again"
        )
    expected = HEADER_BYTES + 2 * count
    if count < 0 or size != expected:
        what = "is truncated" if size < expected else "has bytes to spare"
        raise ValueError(
            f"a shard's size is {HEADER_BYTES} + 2 * tokens; {path.name} declares {count:,} tokens in {size:,} bytes "
            f"instead of {expected:,}: it {what}; get it again"
        )
    return count


def open_shard(path: Path, vocab: int | None = None) -> np.ndarray:
    """The ids [N] of a shard as a read-only uint16 memory map, verified: magic, version, count, size, ids < `vocab`.

    With `vocab` every id is read once, in blocks. Raises ValueError that names the file and what is wrong with it.
    """
    count = read_count(path)
    if count == 0:  # an empty file region cannot be mapped
        return np.empty(0, dtype=np.uint16)
    tokens = np.memmap(path, dtype="<u2", mode="r", offset=HEADER_BYTES, shape=(count,))
    if vocab is not None and vocab <= 0xFFFF:
        for start in range(0, count, _CHECK_TOKENS):
            block = tokens[start : start + _CHECK_TOKENS]
            if block.max() >= vocab:
                position = start + int(np.argmax(block >= vocab))
                raise ValueError(
                    f"every id of a shard is below the vocabulary's size {vocab}; {path.name} has {tokens[position]} "
                    f"at token {position:,}: use the tokenizer that wrote it, or get the shard again"
                )
    return tokens
