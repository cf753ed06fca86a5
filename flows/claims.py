"""Claims on GPUs between processes of one machine: a worker's stages, other workers, and a run in a terminal.

A claim is a locked file. The kernel lets go of it when its holder dies, whatever kills it, and its stage dies with it.
Claims are those of one user: GPUs that several users share are what a cluster's own scheduler is for.
"""

from __future__ import annotations

import fcntl
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO


@dataclass(frozen=True)
class Claim:
    """One GPU that nobody else has."""

    gpu: str
    _lock: IO[str]

    def release(self) -> None:
        """Give it back."""
        self._lock.close()


def folder() -> Path:
    """Where this user's claims lie."""
    return Path(tempfile.gettempdir()) / f"fairway-gpus-{os.getuid()}"


def claim(gpus: Sequence[str], count: int) -> list[Claim] | None:
    """`count` of `gpus`, or None, and then none of them, if others have too many: who waits holds nothing."""
    if count == 0:
        return []
    folder().mkdir(mode=0o700, exist_ok=True)
    held: list[Claim] = []
    for gpu in gpus:
        if len(held) == count:
            break
        lock = (folder() / f"{gpu.replace('/', '_')}.lock").open("w", encoding="ascii")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.close()
            continue
        held.append(Claim(gpu, lock))
    if len(held) == count:
        return held
    for each in held:
        each.release()
    return None
