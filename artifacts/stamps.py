"""Which of this host's copies were already read through and found right, so that a large file is hashed once per host.

A stamp is one small file per object: size, mtime, ctime and inode of the copy that was hashed. Any write to the copy,
by any tool, changes at least one of them. What is scored or submitted is hashed in full all the same: stamps cannot see
a disk that rots.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import time
from collections.abc import Iterable
from pathlib import Path

# The kernel's file times move in ticks of up to 10 ms (HZ=100); a write within the tick of a stamp would not show.
_TICK_S = 0.0121


class Stamps:
    """The stamps of one host for one store."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def holds(self, sha256: str, path: Path) -> bool:
        """Whether the file is the very one that was verified."""
        try:
            stamped = (self._folder / sha256[:2] / sha256).read_text(encoding="ascii")
            return stamped == signature(path)
        except (OSError, ValueError):
            return False

    def used(self, sha256: Iterable[str]) -> None:
        """Note that these objects are in use now: a stamp's own time is that of the last use."""
        for each in sha256:
            with contextlib.suppress(OSError):
                os.utime(self._folder / each[:2] / each)

    def last_used_s(self, sha256: str) -> float | None:
        """When an object was last used here, in seconds since 1970; None if it was never verified here."""
        try:
            return os.stat(self._folder / sha256[:2] / sha256).st_mtime
        except OSError:
            return None

    def write(self, verified: Iterable[tuple[str, Path, str]]) -> None:
        """Remember (sha256, path, signature taken before its bytes were hashed and found right)."""
        verified = list(verified)
        # A store that cannot be written to is verified on every use instead.
        with contextlib.suppress(OSError):
            changed_s = max((os.stat(path).st_ctime for _, path, _ in verified), default=0.0)
            left_s = changed_s + _TICK_S - time.time()
            if left_s > 0:
                time.sleep(min(left_s, _TICK_S))
            for sha256, path, before in verified:
                if signature(path) == before:
                    self._put(sha256, before)

    def _put(self, sha256: str, text: str) -> None:
        target = self._folder / sha256[:2] / sha256
        temporary = target.with_name(f"{sha256}.{secrets.token_hex(4)}")
        try:
            temporary.write_text(text, encoding="ascii")
        except FileNotFoundError:
            target.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_text(text, encoding="ascii")
        # Not flushed: a stamp that is lost or cut short in a crash only costs another hash.
        os.replace(temporary, target)


def signature(path: Path) -> str:
    """What tells one state of a file from every other, short of reading it."""
    status = os.stat(path)
    return f"{status.st_size} {status.st_mtime_ns} {status.st_ctime_ns} {status.st_ino}\n"
