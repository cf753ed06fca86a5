"""Copies a running stage's checkpoints to the store, so that any machine can go on from the last one."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from artifacts.errors import StoreError

EVERY_S = 5.0  # looking costs a few stats; copied is only what has changed, each checkpoint once


class AttemptStore(Protocol):
    """The part of the store that keeps checkpoints of unfinished work."""

    def restore_attempt(self, key: str, folder: Path) -> bool:
        """Fill `folder` with the last mirrored state, if there is one."""
        ...

    def mirror_attempt(self, key: str, folder: Path) -> bool:
        """Replace the mirrored state with what is in `folder`; False if it changed under our hands."""
        ...


class Mirror:
    """The checkpoints of one key, between a job's folder and the store, for as long as nobody else has its lease."""

    def __init__(
        self, store: AttemptStore, key: str, every_s: float = EVERY_S, lost: Callable[[], bool] = lambda: False
    ) -> None:
        self._store, self._key, self._every_s, self._lost = store, key, every_s, lost
        self._seen: tuple[tuple[str, int, int], ...] = ()

    def restore(self, folder: Path) -> None:
        """Bring back what an interrupted attempt at this key left, on whatever machine it ran."""
        folder.mkdir(parents=True, exist_ok=True)
        self._store.restore_attempt(self._key, folder)
        self._seen = _state(folder)

    @contextmanager
    def copying(self, folder: Path) -> Iterator[None]:
        """Copy `folder` whenever it has changed; after a failure once more, for the checkpoint written at the end."""
        stop = threading.Event()

        def loop() -> None:
            while not stop.wait(self._every_s):
                self.copy(folder)

        copier = threading.Thread(target=loop, name=f"mirror-{self._key[:8]}", daemon=True)
        copier.start()
        try:
            yield
        except BaseException:
            stop.set()
            copier.join()
            self.copy(folder)
            raise
        finally:
            stop.set()
            copier.join()

    def copy(self, folder: Path) -> None:
        """Copy it if it has changed since the last time."""
        try:
            state = _state(folder)
            if state == self._seen or self._lost():  # whoever has the lease now may be further
                return
            copied = self._store.mirror_attempt(self._key, folder)
        except (OSError, StoreError):
            return  # a checkpoint that cannot be copied now costs time later, never the run; tried again
        if copied:
            self._seen = state


def _state(folder: Path) -> tuple[tuple[str, int, int], ...]:
    """What tells one state of a folder from another."""
    found = []
    for path in sorted(folder.rglob("*")):
        try:
            stat = path.stat()
        except FileNotFoundError:
            continue  # replaced by the next one at this moment
        found.append((path.relative_to(folder).as_posix(), stat.st_size, stat.st_mtime_ns))
    return tuple(found)
