"""One large file by many reads side by side, hashed in order while it arrives.

A single stream is bound by the round trip and by one thread; reading a file again to hash it doubles the wait. So parts
are asked for at once, written where they belong, and hashed as soon as all before them are there.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable
from pathlib import Path

from artifacts.parallel import in_parallel

# Larger parts cost memory and tell less often how far they are; some servers read a whole object for each part.
PART_BYTES = 16 << 20


def read_in_parts(read: Callable[[int, int], bytes], path: Path, size_bytes: int, streams: int) -> tuple[str, int]:
    """Fill the file by `read(start, end)`, `streams` at once; (sha256, bytes) of what is in it."""
    with path.open("w+b", buffering=0) as target:
        hashed = _InOrder(target.fileno())

        def part(start: int) -> None:
            data = read(start, min(start + PART_BYTES, size_bytes))
            _write_all(target.fileno(), data, start)
            hashed.arrived(start, data)

        in_parallel(part, range(0, size_bytes, PART_BYTES), streams)
        return hashed.digest.hexdigest(), hashed.done


class _InOrder:
    """Hashes parts of a file, each as soon as those before it are hashed, in the thread that made that so."""

    def __init__(self, file: int) -> None:
        self.digest = hashlib.sha256()
        self.done = 0
        self._file = file
        self._lock = threading.Lock()
        self._waiting: dict[int, int] = {}  # start -> bytes
        self._busy = False

    def arrived(self, start: int, data: bytes) -> None:
        """A part is in the file."""
        with self._lock:
            if self._busy or start != self.done:
                self._waiting[start] = len(data)  # not the bytes: what waits would fill the memory
                return
            self._busy = True
        while data:
            self.digest.update(data)
            with self._lock:
                self.done += len(data)
                size_bytes = self._waiting.pop(self.done, 0)
                self._busy = size_bytes > 0
            data = os.pread(self._file, size_bytes, self.done) if size_bytes else b""


def _write_all(file: int, data: bytes, start: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(file, view, start)
        view, start = view[written:], start + written
