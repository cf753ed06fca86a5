"""How far a transfer is, for whoever waits for it: bytes, rate, and what is left."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

_QUIET_S = 1.0  # a shorter transfer says nothing
_EVERY_S = 0.5
_WINDOW = 20  # steps that the rate is the mean of


@dataclass(frozen=True)
class Moved:
    """Where a transfer is."""

    doing: str  # such as "fetching inputs"
    done: int  # bytes
    total: int
    rate: float  # bytes per second of the last seconds

    def __str__(self) -> str:
        """`fetching inputs 312 of 800 MB, 95 MB/s`."""
        size, unit = next((each for each in ((10**9, "GB"), (10**6, "MB")) if self.total >= each[0]), (10**3, "kB"))
        digits = 1 if self.total < 10 * size else 0
        return (
            f"{self.doing} {self.done / size:.{digits}f} of {self.total / size:.{digits}f} {unit}, {_rate(self.rate)}"
        )


class Meter:
    """Counts bytes of one transfer, from any thread, and tells of them now and then."""

    def __init__(self, doing: str, tell: Callable[[Moved], None] | None) -> None:
        self._doing, self._tell = doing, tell
        self._lock = threading.Lock()
        self._done = self._total = 0
        self._started_s = self._told_s = time.monotonic()
        self._points: deque[tuple[float, int]] = deque([(self._started_s, 0)], maxlen=_WINDOW)

    def expect(self, size_bytes: int) -> None:
        """So much more is to be moved."""
        with self._lock:
            self._total += size_bytes

    def add(self, size_bytes: int) -> None:
        """So much was moved."""
        if self._tell is None:
            return
        with self._lock:
            self._done += size_bytes
            now_s = time.monotonic()
            if now_s - self._started_s < _QUIET_S or now_s - self._told_s < _EVERY_S:
                return
            self._told_s = now_s
            then_s, then = self._points[0]
            self._points.append((now_s, self._done))
            rate = (self._done - then) / max(now_s - then_s, 1e-3)
            moved = Moved(self._doing, self._done, max(self._total, self._done), rate)
        self._tell(moved)


SILENT = Meter("", None)


def _rate(per_s: float) -> str:
    return f"{per_s / 1e6:.0f} MB/s" if per_s >= 10e6 else f"{per_s / 1e6:.1f} MB/s"
