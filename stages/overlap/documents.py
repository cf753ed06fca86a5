"""The documents of a token stream that comes in blocks, each as a digest of its tokens."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Document:
    """One document, BOS left out."""

    digest: bytes
    tokens: int


class Documents:
    """Cuts a stream at its BOS. A document may span any number of blocks and shards; one without tokens is none."""

    def __init__(self, bos: int) -> None:
        self._bos = bos
        self._open = hashlib.sha256()
        self._tokens = 0

    def feed(self, block_N: np.ndarray) -> Iterator[Document]:
        """The documents that end within the next N tokens (uint16)."""
        block_N = np.ascontiguousarray(block_N, dtype="<u2")
        data, begin = memoryview(block_N.data).cast("B"), 0
        for at in np.flatnonzero(block_N == self._bos).tolist():
            self._add(data[2 * begin : 2 * at], at - begin)
            yield from self.end()
            begin = at + 1
        self._add(data[2 * begin :], len(block_N) - begin)

    def end(self) -> Iterator[Document]:
        """The document that is open, if it has tokens: at the end of the stream, or at the next BOS."""
        if self._tokens:
            yield Document(self._open.digest(), self._tokens)
            self._open = hashlib.sha256()
            self._tokens = 0

    def _add(self, data: memoryview, tokens: int) -> None:
        self._open.update(data)
        self._tokens += tokens
