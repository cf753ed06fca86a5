"""Copies a running stage's checkpoints to the store, so that any machine can go on from the last one."""

from __future__ import annotations

import threading
from pathlib import Path
from types import TracebackType
from typing import Protocol

from artifacts.errors import StoreError

EVERY_S = 30.0


class AttemptStore(Protocol):
    """The part of the store that keeps checkpoints of unfinished work."""

    def restore_attempt(self, key: str, folder: Path) -> bool:
        """Fill `folder` with the last mirrored state, if there is one."""
        ...

    def mirror_attempt(self, key: str, folder: Path) -> bool:
        """Replace the mirrored state with what is in `folder`; False if it changed under our hands."""
        ...

    def remove_attempt(self, key: str) -> None:
        """Forget the mirrored state."""


class Mirror:
    """While entered, a thread mirrors `folder` whenever it has changed; on the way out it does so once more."""

    def __init__(self, store: AttemptStore, key: str, folder: Path, every_s: float = EVERY_S) -> None:
        self._store, self._key, self._folder, self._every_s = store, key, folder, every_s
        self._stop = threading.Event()
        self._seen = self._state()
        self._thread = threading.Thread(target=self._loop, name=f"mirror-{key[:8]}", daemon=True)

    def restore(self) -> None:
        """Bring back what an interrupted attempt at this key left, on whatever machine it ran."""
        self._folder.mkdir(parents=True, exist_ok=True)
        self._store.restore_attempt(self._key, self._folder)
        self._seen = self._state()

    def remove(self) -> None:
        """The record exists: checkpoints have no more use."""
        self._store.remove_attempt(self._key)

    def __enter__(self) -> Mirror:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
        if kind is not None:
            self._copy()  # the checkpoint that the stage wrote when it was asked to stop

    def _loop(self) -> None:
        while not self._stop.wait(self._every_s):
            self._copy()

    def _copy(self) -> None:
        state = self._state()
        if state == self._seen:
            return
        try:
            copied = self._store.mirror_attempt(self._key, self._folder)
        except (OSError, StoreError):
            return  # a checkpoint that cannot be copied now costs time later, never the run; tried again
        if copied:
            self._seen = state

    def _state(self) -> tuple[tuple[str, int, int], ...]:
        if not self._folder.is_dir():
            return ()
        found = []
        for path in sorted(self._folder.rglob("*")):
            try:
                stat = path.stat()
            except FileNotFoundError:
                continue  # replaced by the next one at this moment
            found.append((str(path.relative_to(self._folder)), stat.st_size, stat.st_mtime_ns))
        return tuple(found)
