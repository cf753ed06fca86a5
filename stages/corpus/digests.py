"""A set of document digests in about 16 bytes each, so that exact duplicates are found in a corpus of any size."""

from __future__ import annotations

import hashlib

import numpy as np

DIGEST_BYTES = 16
FLUSH = 1 << 18  # digests that wait in a Python set, at about 100 bytes each


def digest_text(text: bytes) -> bytes:
    """The digest of one document's UTF-8 bytes."""
    return hashlib.blake2b(text, digest_size=DIGEST_BYTES).digest()


class Digests:
    """Remembers digests: new ones in a Python set, old ones in sorted arrays that double in size as they merge."""

    def __init__(self) -> None:
        self._new: set[bytes] = set()
        self._runs: list[np.ndarray] = []

    def __len__(self) -> int:
        return len(self._new) + sum(map(len, self._runs))

    def add(self, digest: bytes) -> bool:
        """Remember a digest; whether it was not known before."""
        if digest in self._new or any(_holds(run, digest) for run in self._runs):
            return False
        self._new.add(digest)
        if len(self._new) >= FLUSH:
            self._flush()
        return True

    def _flush(self) -> None:
        run = np.sort(np.frombuffer(b"".join(self._new), dtype=_ITEM))
        self._new.clear()
        while self._runs and len(self._runs[-1]) <= 2 * len(run):
            run = np.sort(np.concatenate([self._runs.pop(), run]), kind="stable")
        self._runs.append(run)


# NumPy compares such strings byte by byte; it ignores trailing zero bytes, which equal lengths make harmless.
_ITEM = np.dtype(f"S{DIGEST_BYTES}")


def _holds(run: np.ndarray, digest: bytes) -> bool:
    at = int(np.searchsorted(run, np.array(digest, dtype=_ITEM)))
    return at < len(run) and run[at] == digest.rstrip(b"\0")
