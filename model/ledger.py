"""What a scoring pass leaves behind: exact sums, a hash over every target, and samples small enough to keep.

One row of the hash per target, in stream order: target (int64), nll (float32), log Z (float32), little-endian, where
log Z is the log of the sum that the referee divided by. Two passes with equal hashes gave every target the same price.
The first `HEAD_TARGETS` rows are kept as they are, so that a replay of the beginning can be compared target by target.

`events` say what happened in which order, so that the order can be checked afterwards:
    score    targets lo .. hi - 1 were priced, for the first time; with the hash over all rows so far
    again    they were priced a second time, by request
    reveal   the tokens of targets lo .. hi - 1 were handed over for training
    expose   so were all tokens, by exception, before they were scored

Letters: N targets of one span, V vocabulary, T positions of a window.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import numpy as np

from model.bytes import ByteTable

HEAD_TARGETS = 65_536
_ROW = np.dtype([("target", "<i8"), ("nll", "<f4"), ("log_z", "<f4")])


class Event(NamedTuple):
    """What happened to targets lo .. hi - 1."""

    kind: Literal["score", "again", "reveal", "expose"]
    lo: int
    hi: int
    sha256: str = ""  # of a score: over all rows up to hi - 1


def bits_per_byte(nats: float, text_bytes: int) -> float:
    """The challenge's score: total cost in bits over the bytes of the scored text."""
    if text_bytes <= 0:
        raise ValueError(f"bits per byte need text; the scored targets stand for {text_bytes} bytes")
    return nats / math.log(2) / text_bytes


@dataclass
class Account:
    """Sums over scored targets."""

    nats: float = 0.0
    targets: int = 0
    bytes: int = 0

    def add(self, nll: np.ndarray, text_bytes: np.ndarray) -> None:
        """Add one cost and one byte count per target; sums are float64 and int64."""
        self.nats += float(nll.sum(dtype=np.float64))
        self.targets += nll.size
        self.bytes += int(text_bytes.sum())

    def __add__(self, other: Account) -> Account:
        return Account(self.nats + other.nats, self.targets + other.targets, self.bytes + other.bytes)


@dataclass
class Excerpt:
    """Consecutive targets whose costs are kept, one by one."""

    document: int  # index of the document in the stream
    lo: int
    hi: int
    ids: list[int] = field(default_factory=list)
    nats: list[float] = field(default_factory=list)
    bytes: list[int] = field(default_factory=list)


class Ledger:
    """Accumulates spans in stream order; equal prices give equal ledgers, however many ranks found them."""

    def __init__(self, table: ByteTable, context: int, targets: int, excerpts: Sequence[Excerpt] = ()) -> None:
        self.table = table
        self.account = Account()
        self.again = Account()  # targets scored a second time, by request: the published tail
        self.excerpts = list(excerpts)
        self.row_targets = sampled_targets(targets)
        self.rows: dict[int, np.ndarray] = {}  # sampled target -> its logits [V]
        self.position_targets_T = np.zeros(context, dtype=np.int64)
        self.position_nats_T = np.zeros(context)
        self.position_bytes_T = np.zeros(context, dtype=np.int64)
        self.head_N2 = np.zeros((min(targets, HEAD_TARGETS), 2), dtype=np.float32)  # nll, log Z
        self.events: list[Event] = []
        self._hash = hashlib.sha256()

    def add(self, nll_N: np.ndarray, log_z_N: np.ndarray, tokens: np.ndarray, position_N: np.ndarray) -> None:
        """Enter the next N targets: costs, log Z, the N + 1 tokens around them, and positions in their windows."""
        lo, hi = self.account.targets, self.account.targets + nll_N.size
        bytes_N = self.table.target_bytes(tokens[:-1], tokens[1:])
        rows_N = np.empty(nll_N.size, dtype=_ROW)
        rows_N["target"], rows_N["nll"], rows_N["log_z"] = np.arange(lo, hi), nll_N, log_z_N
        self._hash.update(rows_N.tobytes())
        self.events.append(Event("score", lo, hi, self._hash.hexdigest()))
        head_N2 = self.head_N2[lo:hi]
        head_N2[:, 0], head_N2[:, 1] = nll_N[: len(head_N2)], log_z_N[: len(head_N2)]
        self.account.add(nll_N, bytes_N)
        positions = len(self.position_nats_T)
        self.position_targets_T += np.bincount(position_N, minlength=positions)
        self.position_nats_T += np.bincount(position_N, weights=nll_N, minlength=positions)
        # Counts below 2^53 are exact in float64.
        self.position_bytes_T += np.bincount(position_N, weights=bytes_N, minlength=positions).astype(np.int64)
        for excerpt in self.excerpts:
            here = slice(max(excerpt.lo, lo) - lo, max(min(excerpt.hi, hi) - lo, 0))
            excerpt.ids += tokens[1:][here].tolist()
            excerpt.nats += nll_N[here].tolist()
            excerpt.bytes += bytes_N[here].tolist()

    @property
    def sha256(self) -> str:
        """Hash over all rows so far."""
        return self._hash.hexdigest()


def sampled_targets(targets: int, count: int = 256) -> np.ndarray:
    """At most `count` targets spread over the stream by a hash, sorted: where whole rows of logits are kept."""
    if targets <= count:
        return np.arange(targets)
    digests = (hashlib.sha256(f"row {i}".encode()).digest()[:8] for i in range(count))
    return np.array(sorted({int.from_bytes(digest, "little") % targets for digest in digests}))
