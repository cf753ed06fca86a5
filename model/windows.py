"""Which window scores which target: integer arithmetic over a token stream, and nothing else.

Target i (0-based) is token i + 1 of the stream, predicted from tokens up to i; so a stream of N tokens has N - 1
targets. Window k starts at input k * stride and holds `context` inputs, fewer at the end of the stream. Window 0 scores
all its targets, every later one those that no window before it has scored: each target is scored exactly once. With
stride = context the windows are the rows of the non-overlapping protocol. Windows lie on a fixed grid, so the first n
targets of a stream are scored from the same inputs whatever follows them.

The published code lets windows start up to the end of the stream; each of these truncated windows scores the last
`stride` targets again. That is here as `rescored_tail`, to reproduce published counts, and never by default.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Batch:
    """Windows `first` .. `stop` - 1, all `length` inputs long, each scoring its last `scored` positions.

    Together they score the consecutive targets `lo` .. `lo + (stop - first) * scored - 1`.
    """

    first: int
    stop: int
    length: int
    scored: int
    lo: int

    @property
    def hi(self) -> int:
        """One past the last scored target."""
        return self.lo + (self.stop - self.first) * self.scored


@dataclass(frozen=True)
class Span:
    """The unit of adaptation: the windows whose first scored target lies in one chunk of the targets."""

    index: int
    first: int  # windows first .. stop - 1
    stop: int
    lo: int  # they score targets lo .. hi - 1, which may reach beyond the chunk's end, never short of it
    hi: int
    chunk: range  # the chunk's targets: what may be trained on once the span is scored


@dataclass(frozen=True)
class Windows:
    """All windows over `targets` targets."""

    targets: int
    context: int
    stride: int
    rescored_tail: bool = False

    def __post_init__(self) -> None:
        if not 1 <= self.stride <= self.context:
            raise ValueError(f"the stride is 1 .. context {self.context} tokens; got {self.stride}")
        if self.targets < self.context:
            raise ValueError(
                f"one window of {self.context} targets must fit into the stream; it has {self.targets}; score more of "
                "it, or lower context_tokens"
            )
        if self.rescored_tail and (self.targets % self.stride or self.context % self.stride):
            raise ValueError(
                "the published tail re-scoring is defined where the stride divides targets and context; got stride "
                f"{self.stride}, {self.targets} targets, context {self.context}; drop the partial row as well"
            )

    @property
    def count(self) -> int:
        """Windows that score each target once."""
        return 1 - (self.context - self.targets) // self.stride  # 1 + ceil((targets - context) / stride)

    @property
    def total(self) -> int:
        """All windows, the ones that re-score the tail included."""
        return self.targets // self.stride if self.rescored_tail else self.count

    def start(self, window: int) -> int:
        """Stream position of a window's first input."""
        return window * self.stride

    def length(self, window: int) -> int:
        """Inputs of a window."""
        return min(self.context, self.targets - self.start(window))

    def lo(self, window: int) -> int:
        """First target that a window scores."""
        return 0 if window == 0 else self.context + (window - 1) * self.stride

    def hi(self, window: int) -> int:
        """One past the last target that a window scores."""
        return min(self.start(window) + self.context, self.targets)

    def positions(self, target_N: np.ndarray) -> np.ndarray:
        """Where in its window each target is scored: the 0-based input position."""
        periodic_N = self.context - self.stride + (target_N - self.context) % self.stride
        return np.where(target_N < self.context, target_N, periodic_N)

    def spans(self, chunk: int = 0) -> Iterator[Span]:
        """The windows in order, grouped by chunks of `chunk` targets; 0 makes one chunk of the whole stream."""
        chunk = chunk or self.targets
        for index, begin in enumerate(range(0, self.targets, chunk)):
            end = min(begin + chunk, self.targets)
            first, stop = self._first_from(begin), self._first_from(end)
            if first < stop:  # a last chunk shorter than the stride may hold no window's first target
                yield Span(index, first, stop, self.lo(first), self.hi(stop - 1), range(begin, end))

    def batches(self, first: int, stop: int, size: int) -> Iterator[Batch]:
        """Windows first .. stop - 1 in batches of at most `size` windows of equal shape."""
        while first < stop:
            length, scored = self.length(first), self.hi(first) - self.lo(first)
            last = first
            while last + 1 < min(stop, first + size) and self._shape(last + 1) == (length, scored):
                last += 1
            yield Batch(first, last + 1, length, scored, self.lo(first))
            first = last + 1

    def tail(self) -> Iterator[Batch]:
        """The windows that score the tail again, one by one."""
        for window in range(self.count, self.total):
            lo = max(self.targets - self.stride, self.start(window))
            yield Batch(window, window + 1, self.length(window), self.targets - lo, lo)

    def _shape(self, window: int) -> tuple[int, int]:
        return self.length(window), self.hi(window) - self.lo(window)

    def _first_from(self, target: int) -> int:
        """The first window whose first scored target is `target` or later."""
        if target <= 0:
            return 0
        return min(self.count, max(1, 1 - (self.context - target) // self.stride))


def share(first: int, stop: int, rank: int, world: int) -> tuple[int, int]:
    """The contiguous part of first .. stop - 1 that belongs to `rank` of `world`; parts differ by at most one."""
    size = stop - first
    return first + size * rank // world, first + size * (rank + 1) // world


def target_count(stream_tokens: int, context: int = 0, limit: int = 0) -> int:
    """Targets of a stream: all N - 1, or the first `limit`; with `context`, whole rows only, as published."""
    targets = max(stream_tokens - 1, 0)
    targets = min(targets, limit) if limit else targets
    return targets // context * context if context else targets
