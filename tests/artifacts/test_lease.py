"""Leases save money: one worker at a time, and the next one soon after a death. Both kinds are tested on a folder."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from artifacts import lease as lease_module
from artifacts.errors import LeaseCancelled, LeaseTimeout, StoreReadOnly, StoreUnavailable
from artifacts.lease import Waiting, _claimed, holders
from artifacts.local import LocalBackend

ROOT = Path(__file__).parents[2]
KEY = hashlib.sha256(b"key").hexdigest()


def claimed(backend, time_limit_s=0.3, timeout_s=None, cancel=None, on_wait=None):
    """The lease across hosts, on whatever backend."""
    return _claimed(backend, KEY, Waiting(KEY, timeout_s, cancel, on_wait), time_limit_s)


@pytest.fixture
def backend(tmp_path):
    return LocalBackend(tmp_path / "store")


def test_a_killed_holders_lease_is_free_at_once(local_place):
    script = (
        "import sys, time\nfrom artifacts.store import Store\n"
        f"with Store.open(sys.argv[1]).lease('{KEY}'):\n    print('held', flush=True)\n    time.sleep(600)\n"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", script, local_place.url], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    store, told = local_place.open(), []
    with pytest.raises(LeaseTimeout), store.lease(KEY, timeout_s=0.1, on_wait=told.append):
        pass
    assert f"process {holder.pid} on " in told[0]
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    holder.stdout.close()
    with store.lease(KEY, timeout_s=0.0):  # nothing is waited for
        pass


def test_many_workers_never_hold_one_lease_together(local_place):
    held, most, turns = 0, 0, 0
    guard = threading.Lock()

    def work() -> None:
        nonlocal held, most, turns
        store = local_place.open()
        for _ in range(5):
            with store.lease(KEY):
                with guard:
                    held, turns = held + 1, turns + 1
                    most = max(most, held)
                time.sleep(0.002)
                with guard:
                    held -= 1

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (turns, most) == (30, 1)
    assert local_place.paths("leases") == []


@pytest.mark.parametrize("across_hosts", [False, True])
def test_waiting_stops_when_it_is_cancelled(local_place, backend, across_hosts):
    def take(cancel=None):
        return claimed(backend, 30, cancel=cancel) if across_hosts else local_place.open().lease(KEY, cancel=cancel)

    cancel = threading.Event()
    timer = threading.Timer(0.1, cancel.set)
    with take():
        timer.start()
        started = time.monotonic()
        with pytest.raises(LeaseCancelled), take(cancel):
            pass
        assert time.monotonic() - started > 0.05
    timer.join()


UNLUCKY = f"""
import os, signal, sys, threading
from artifacts.errors import LeaseCancelled
from artifacts.store import Store

class Unlucky(threading.Event):
    def wait(self, timeout=None):
        with self._cond:  # as for a moment in each real one
            os.kill(os.getpid(), signal.SIGTERM)
        return super().wait(timeout)

cancel = Unlucky()
signal.signal(signal.SIGTERM, lambda *_: cancel.set())
told = lambda holder: threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGTERM)).start()
try:
    with Store.open(sys.argv[1]).lease({KEY!r}, cancel=cancel, on_wait=told):
        pass
except LeaseCancelled:
    print("cancelled")
"""


def test_a_signal_that_cancels_the_waiting_of_its_own_thread_is_heeded_whenever_it_comes(local_place):
    """A handler that sets the event for which its thread waits would wait for the thread to let go of the event."""
    with local_place.open().lease(KEY):
        command = [sys.executable, "-c", UNLUCKY, local_place.url]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.stdout == "cancelled\n", done.stderr


def test_a_silent_claim_is_taken_over_and_its_holder_knows(backend, monkeypatch):
    with claimed(backend) as first:
        # The holder's machine hangs: no beat any more.
        monkeypatch.setattr(lease_module._Beats, "write", lambda self, released: None)
        started = time.monotonic()
        with claimed(backend, timeout_s=60) as second:
            waited_s = time.monotonic() - started
            assert waited_s >= 0.3
            deadline = time.monotonic() + 60
            while not first.lost and time.monotonic() < deadline:
                time.sleep(0.01)
            assert first.lost
            assert not second.lost


def test_a_beating_claim_is_not_taken_over_however_wrong_the_clocks_are(backend, monkeypatch):
    with claimed(backend, time_limit_s=2.0):  # a busy machine's beats come late, too
        for skew_s in (-1e7, 1e7):
            monkeypatch.setattr(time, "time", lambda skew_s=skew_s: 1.8e9 + skew_s)
            for entry in list(backend.walk("leases")):
                os.utime(backend.path(entry.path), (1e9 + skew_s, 1e9 + skew_s))
            with pytest.raises(LeaseTimeout), claimed(backend, time_limit_s=0.01, timeout_s=2.5):
                pass


def test_a_released_claim_is_taken_at_once_and_old_ones_are_cleared_away(backend):
    for epoch in (1, 2, 3):
        with claimed(backend, time_limit_s=30, timeout_s=0.0):  # nothing is waited for
            assert KEY in holders(backend)
        assert {entry.path for entry in backend.walk("leases")} == {
            f"leases/{KEY}/{epoch:08d}.json",
            f"leases/{KEY}/{epoch:08d}.beat",
        }
    assert holders(backend) == {}


def test_a_holder_whose_store_is_gone_for_too_long_has_lost_its_lease(backend, monkeypatch):
    def fail(self, released):
        raise StoreUnavailable("gone")

    with claimed(backend, time_limit_s=1.5) as held:
        monkeypatch.setattr(lease_module._Beats, "write", fail)
        assert not held.lost
        deadline = time.monotonic() + 60
        while not held.lost and time.monotonic() < deadline:
            time.sleep(0.01)
        assert held.lost


def test_a_short_outage_does_not_lose_the_lease_and_release_survives_one(backend, monkeypatch):
    beats = []

    def fail(self, released):
        beats.append(released)
        raise StoreUnavailable("gone")

    with claimed(backend, time_limit_s=30) as held:
        monkeypatch.setattr(lease_module._Beats, "write", fail)
    assert not held.lost
    assert beats[-1] is True


def test_a_file_system_without_locks_gets_the_lease_across_hosts(local_place, monkeypatch):
    def no_locks(descriptor, operation):
        raise OSError(errno.ENOLCK, "no locks here")

    monkeypatch.setattr(lease_module.fcntl, "flock", no_locks)
    with local_place.open().lease(KEY):
        assert f"leases/{KEY}/00000001.json" in local_place.paths("leases")
        with pytest.raises(LeaseTimeout), local_place.open().lease(KEY, timeout_s=0.1):
            pass


def test_an_unexpected_lock_error_is_not_taken_for_a_lock(local_place, monkeypatch):
    def fail(descriptor, operation):
        raise PermissionError(errno.EACCES, "no")

    monkeypatch.setattr(lease_module.fcntl, "flock", fail)
    with pytest.raises(StoreReadOnly, match="must let us lock"), local_place.open().lease(KEY):
        pass


def test_a_lock_whose_file_was_removed_meanwhile_does_not_count(local_place, monkeypatch):
    path = Path(local_place.url, f"leases/{KEY}.lock")
    try_lock, tries = lease_module._try_lock, []

    def remove_then_lock(descriptor):
        if not tries:
            path.unlink()
        tries.append(descriptor)
        return try_lock(descriptor)

    monkeypatch.setattr(lease_module, "_try_lock", remove_then_lock)
    with local_place.open().lease(KEY):
        assert path.exists()
    assert len(tries) == 2


def test_half_written_and_unheld_locks_are_no_leases(local_place, backend):
    lock = Path(local_place.url, f"leases/{KEY}.lock")
    lock.parent.mkdir(parents=True)
    for text in ('{"host": ', "[1]", ""):
        lock.write_text(text)
        assert holders(backend) == {}
        told = []
        with local_place.open().lease(KEY):
            lock.write_text(text)
            assert holders(backend) == {KEY: "another process"}
            with pytest.raises(LeaseTimeout, match="another process"):
                local_place.open().lease(KEY, timeout_s=0.05, on_wait=told.append).__enter__()
        assert told == ["another process"]
    assert lease_module._is_locked(lock) is False


def test_what_a_claim_says_is_for_people_to_read(backend):
    with claimed(backend, time_limit_s=7):
        claim = json.loads(backend.read(f"leases/{KEY}/00000001.json"))
    assert claim["pid"] == os.getpid()
    assert claim["time_limit_s"] == 7
    assert len(claim["token"]) == 16


def test_gc_leaves_held_leases_and_removes_forgotten_ones(local_place):
    store = local_place.open()
    other = hashlib.sha256(b"other").hexdigest()
    (Path(local_place.url) / "leases").mkdir(parents=True)
    (Path(local_place.url) / f"leases/{other}.lock").write_text("left by a kill")
    with store.lease(KEY):
        assert [entry.path for entry in store.gc(grace_s=-1, delete=True).removed] == [f"leases/{other}.lock"]


class Forgetful(LocalBackend):
    """Makes what it is told to make, and the answer is lost: the next try finds its own file."""

    def create(self, path: str, data: bytes) -> bool:
        super().create(path, data)
        return super().create(path, data)


def test_a_claim_whose_answer_was_lost_is_known_as_our_own(tmp_path):
    """Otherwise we would wait for ourselves until our silence has lasted long enough."""
    with claimed(Forgetful(tmp_path / "store"), time_limit_s=60.0, timeout_s=0.0) as held:
        assert not held.lost
    assert holders(LocalBackend(tmp_path / "store")) == {}
