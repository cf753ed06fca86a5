"""Leases: one worker at a time on a key, so that nothing is paid for twice.

They only save money. Correctness is the record's, which only one writer can create, so a lease that is lost, stolen or
broken never harms a result.

On one host a lease is a `flock`, which the kernel releases with its holder's death. Across hosts it is a claim,
`leases/<key>/<epoch>.json`, which only one can create, and beside it `<epoch>.beat`, which its holder rewrites every
third of the time limit. A waiter takes over, by creating the next epoch, when the beat's content has not changed for
the time limit on the waiter's own monotonic clock: no two clocks are ever compared.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from artifacts.backend import Backend, explained, host_name
from artifacts.errors import LeaseCancelled, LeaseTimeout, StoreError
from artifacts.local import LocalBackend
from artifacts.record import check_key

TIME_LIMIT_S = 60.0
_NO_FLOCK = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP)


class Lease:
    """A lease that is held. `lost` turns true if somebody else has taken it over."""

    def __init__(self, key: str) -> None:
        self.key = key
        self.lost = False


class Waiting:
    """How long, and how interruptibly, to wait for a lease; tells once who holds it."""

    def __init__(
        self,
        key: str,
        timeout_s: float | None,
        cancel: threading.Event | None,
        on_wait: Callable[[str], None] | None,
    ) -> None:
        self._key = key
        self._timeout_s = float("inf") if timeout_s is None else timeout_s
        self._cancel = cancel or threading.Event()
        self._on_wait = on_wait
        self._started_s = time.monotonic()
        self._told = ""

    def pause(self, holder: str, seconds: float) -> None:
        """Wait a moment; LeaseTimeout or LeaseCancelled when it is enough."""
        if holder != self._told and self._on_wait is not None:
            self._on_wait(holder)
        self._told = holder
        waited_s = time.monotonic() - self._started_s
        if waited_s >= self._timeout_s:
            raise LeaseTimeout(
                f"only one worker makes {self._key} at a time; waited {waited_s:.0f} s for {holder}; "
                "wait longer, or stop that one"
            )
        # Not `cancel.wait`: who sets it may be a signal's handler in this very thread, and would wait for us to let go.
        time.sleep(min(seconds, self._timeout_s - waited_s))
        if self._cancel.is_set():
            raise LeaseCancelled(f"the waiting for {holder} to finish {self._key} was stopped; run again to go on")


@contextmanager
def lease(backend: Backend, key: str, waiting: Waiting, time_limit_s: float = TIME_LIMIT_S) -> Iterator[Lease]:
    """Hold the key's lease during the block."""
    check_key(key)
    if isinstance(backend, LocalBackend):
        path = backend.path(f"leases/{key}.lock")
        with explained(backend.url, "lock", f"leases/{key}.lock"):
            locked = _lock(path, waiting, lambda: _holder(_read_or_nothing(backend, f"leases/{key}.lock")))
        if locked is not None:
            try:
                yield Lease(key)
            finally:
                # Removed while it is locked: a waiter then holds a lock without a name, notices, and tries again.
                with suppress(FileNotFoundError):
                    os.unlink(path)
                os.close(locked)
            return
    with _claimed(backend, key, waiting, time_limit_s) as claim:
        yield claim


def holders(backend: Backend) -> dict[str, str]:
    """{key: holder} of every lease that may be held now; a claim counts as held until it says that it is released."""
    held: dict[str, str] = {}
    for entry in backend.walk("leases"):
        words = entry.path.split("/")
        if len(words) == 2 and isinstance(backend, LocalBackend):
            if _is_locked(backend.path(entry.path)):
                held[words[1].removesuffix(".lock")] = _holder(_read_or_nothing(backend, entry.path))
        elif entry.path.endswith(".json"):
            held.pop(words[1], None)
            if not _beat(_read_or_nothing(backend, entry.path.removesuffix(".json") + ".beat")).get("released"):
                held[words[1]] = _holder(_read_or_nothing(backend, entry.path))
    return held


# On one host


def _lock(path: Path, waiting: Waiting, holder: Callable[[], str]) -> int | None:
    """The descriptor that holds the lock, or None where the file system has no locks."""
    while True:
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        except FileNotFoundError:
            path.parent.mkdir(parents=True, exist_ok=True)
            continue
        try:
            while not _try_lock(descriptor):
                waiting.pause(holder(), 0.03)
            if _same_file(descriptor, path):
                os.ftruncate(descriptor, 0)
                os.write(descriptor, _me())
                return descriptor
        except OSError as error:
            os.close(descriptor)
            if error.errno in _NO_FLOCK:
                return None
            raise
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _same_file(descriptor: int, path: Path) -> bool:
    try:
        return os.fstat(descriptor).st_ino == os.stat(path).st_ino
    except FileNotFoundError:
        return False


def _is_locked(path: Path) -> bool:
    try:
        descriptor = os.open(path, os.O_RDWR)
    except OSError:
        return False
    try:
        return not _try_lock(descriptor)
    finally:
        os.close(descriptor)


# Across hosts


@contextmanager
def _claimed(backend: Backend, key: str, waiting: Waiting, time_limit_s: float) -> Iterator[Lease]:
    epoch = _claim(backend, key, waiting, time_limit_s)
    held = Lease(key)
    stop = threading.Event()
    beats = _Beats(backend, held, epoch, time_limit_s)
    beating = threading.Thread(target=beats.run, args=(stop,), name=f"lease-{key[:8]}", daemon=True)
    beating.start()
    try:
        yield held
    finally:
        stop.set()
        beating.join()
        if not held.lost:
            # If the store is gone by now, the time limit does the releasing.
            with suppress(StoreError):
                beats.write(released=True)


def _claim(backend: Backend, key: str, waiting: Waiting, time_limit_s: float) -> int:
    """Wait until the newest claim is released or silent, then create the next; its epoch."""
    seen: tuple[int, bytes] | None = None
    seen_s = 0.0
    raw_claim = _me(time_limit_s=time_limit_s)
    while True:
        epoch = max(_epochs(backend, key), default=0)
        beat = _read_or_nothing(backend, _path(key, epoch, "beat"))
        claim = _read_or_nothing(backend, _path(key, epoch, "json"))
        if (epoch, beat) != seen:
            seen, seen_s = (epoch, beat), time.monotonic()
        limit_s = float(_beat(claim).get("time_limit_s", time_limit_s))
        silent = time.monotonic() - seen_s > limit_s
        free = epoch == 0 or silent or _beat(beat).get("released")
        ours = _path(key, epoch + 1, "json")
        # The answer to a request that is made again may have been lost: then what is there is our own.
        if free and (backend.create(ours, raw_claim) or _read_or_nothing(backend, ours) == raw_claim):
            for older in _epochs(backend, key):
                if older <= epoch:
                    backend.delete(_path(key, older, "json"))
                    backend.delete(_path(key, older, "beat"))
            return epoch + 1
        if not free:
            waiting.pause(_holder(claim), min(1.0, limit_s / 10))


class _Beats:
    """Rewrites a claim's beat for as long as it is the newest."""

    def __init__(self, backend: Backend, held: Lease, epoch: int, time_limit_s: float) -> None:
        self._backend = backend
        self._held = held
        self._epoch = epoch
        self._time_limit_s = time_limit_s
        self._count = 0

    def run(self, stop: threading.Event) -> None:
        """Beat until told to stop or until the lease is lost."""
        beaten_s = time.monotonic()
        while not stop.wait(self._time_limit_s / 3 if self._count else 0):
            try:
                if max(_epochs(self._backend, self._held.key), default=0) > self._epoch:
                    self._held.lost = True
                    return
                self.write(released=False)
                beaten_s = time.monotonic()
            except StoreError:
                if time.monotonic() - beaten_s > self._time_limit_s:
                    self._held.lost = True
                    return

    def write(self, released: bool) -> None:
        """One more beat: what matters is that its content is new."""
        self._count += 1
        beat = {"beat": self._count, "released": released}
        self._backend.write(_path(self._held.key, self._epoch, "beat"), json.dumps(beat).encode())


def _path(key: str, epoch: int, kind: str) -> str:
    return f"leases/{key}/{epoch:08d}.{kind}"


def _epochs(backend: Backend, key: str) -> list[int]:
    names = (entry.path.split("/")[-1] for entry in backend.walk(f"leases/{key}") if entry.path.endswith(".json"))
    return [int(name.removesuffix(".json")) for name in names if name.removesuffix(".json").isdecimal()]


def _me(**more: float) -> bytes:
    """Who holds a lease, for those who wait. The time is for people; nothing is decided by it."""
    since = datetime.now(UTC).isoformat(timespec="seconds")
    holder = {"host": host_name(), "pid": os.getpid(), "since": since, "token": secrets.token_hex(8), **more}
    return json.dumps(holder).encode()


def _holder(raw: bytes) -> str:
    """What `_me` wrote, for a person; it may be half written."""
    holder = _beat(raw)
    if not holder:
        return "another process"
    return f"process {holder.get('pid')} on {holder.get('host')} (since {holder.get('since')})"


def _beat(raw: bytes) -> dict[str, Any]:
    try:
        value = json.loads(raw)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def _read_or_nothing(backend: Backend, path: str) -> bytes:
    try:
        return backend.read(path)
    except FileNotFoundError:
        return b""
