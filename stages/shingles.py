"""Hashes of all runs of W tokens of a stream that comes in blocks: a polynomial modulo 2^64, mixed.

With an odd base b and random numbers r of the token ids, the prefix sums P[i] = sum over j < i of r[t[j]] b^j give the
hash of the window at i as (P[i + W] - P[i]) b^-i: the same for equal windows wherever they stand, in a handful of array
operations per token. The result is mixed, so that any of its bits may choose a sample.

Letters: N tokens of a block, S shingles.
"""

from __future__ import annotations

import numpy as np

_BASE = 0x9E3779B97F4A7C15  # odd, so that it has an inverse modulo 2^64
_MODULUS = 1 << 64


class Shingles:
    """Windows of `width` tokens that hold no BOS, of one stream."""

    def __init__(self, width: int, bos: int, block_tokens: int) -> None:
        self._width, self._bos = width, bos
        self._numbers = mixed(np.arange(1 << 16, dtype=np.uint64) + np.uint64(1))
        powers = np.full(block_tokens + width, _BASE, dtype=np.uint64)
        inverse = np.full(block_tokens + width, pow(_BASE, -1, _MODULUS), dtype=np.uint64)
        powers[0] = inverse[0] = 1
        self._powers, self._inverse = np.cumprod(powers), np.cumprod(inverse)
        self._kept = np.empty(0, dtype=np.uint16)

    def feed(self, block_N: np.ndarray) -> np.ndarray:
        """Hashes uint64 [S] of the windows that end within the next N tokens, N at most `block_tokens`."""
        tokens = np.concatenate([self._kept, block_N])
        self._kept = tokens[-(self._width - 1) :].copy()
        windows = len(tokens) - self._width + 1
        if windows <= 0:
            return np.empty(0, dtype=np.uint64)
        sums = np.zeros(len(tokens) + 1, dtype=np.uint64)
        np.cumsum(self._numbers[tokens] * self._powers[: len(tokens)], out=sums[1:])
        hashes = (sums[self._width :] - sums[:windows]) * self._inverse[:windows]
        ends = np.cumsum(np.concatenate([[False], tokens == self._bos]))
        return mixed(hashes[ends[self._width :] == ends[:windows]])


def mixed(values: np.ndarray) -> np.ndarray:
    """splitmix64's finaliser: a bijection of uint64 whose every bit depends on every bit."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


class Sample:
    """The shingles of val that are looked up: sorted, each with the number of places where it stands."""

    def __init__(self, hashes: np.ndarray, total: int, one_in: int) -> None:
        self.total, self.one_in = total, one_in
        self._hashes, self._places = np.unique(hashes, return_counts=True)
        self._found = np.zeros(len(self._hashes), dtype=bool)

    def look_up(self, hashes: np.ndarray) -> None:
        """Note which of the sample are among these hashes."""
        if not len(self._hashes):
            return
        hashes = chosen(hashes, self.one_in)
        at = np.minimum(np.searchsorted(self._hashes, hashes), len(self._hashes) - 1)
        self._found[at[self._hashes[at] == hashes]] = True

    @property
    def places(self) -> int:
        """Places of val that are sampled."""
        return int(self._places.sum())

    @property
    def found(self) -> int:
        """Of these, the places whose shingle was found."""
        return int(self._places[self._found].sum())


def chosen(hashes: np.ndarray, one_in: int) -> np.ndarray:
    """The share of `hashes` that is sampled, a power of two: the same of equal shingles, on either side."""
    return hashes if one_in == 1 else hashes[(hashes & np.uint64(one_in - 1)) == 0]
