"""Cores and GPUs are lent to processes, never twice."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from flows.claims import claim
from flows.slots import Slots, usable_cores, usable_gpus
from stages.contract import Device

NEVER = threading.Event()


def test_no_more_cores_are_lent_than_there_are():
    slots, lock = Slots(cores=4), threading.Lock()
    taken, most = 0, 0

    def work(threads: int) -> None:
        nonlocal taken, most
        with slots.lend(Device(threads=threads), NEVER):
            with lock:
                taken += threads
                most = max(most, taken)
            threading.Event().wait(0.01)
            with lock:
                taken -= threads

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, [1, 2, 3, 1, 2, 4, 1, 2]))
    assert most <= 4


def test_a_request_above_the_machine_gets_all_of_it():
    slots = Slots(cores=2)
    with slots.lend(Device(threads=8, count=4), NEVER):
        assert slots._free_cores == 0
    assert slots._free_cores == 2


def test_gpus_are_named_to_their_process_and_come_back():
    slots = Slots(cores=8, gpus=("0", "1", "2"))
    one = Device(kind="cuda", threads=1)
    with slots.lend(one, NEVER) as first, slots.lend(Device(kind="cuda", count=2, threads=1), NEVER) as both:
        assert first == {"CUDA_VISIBLE_DEVICES": "0"}
        assert both == {"CUDA_VISIBLE_DEVICES": "1,2"}
    with slots.lend(Device(kind="cuda", count=3, threads=1), NEVER) as all_three:
        assert sorted(all_three["CUDA_VISIBLE_DEVICES"].split(",")) == ["0", "1", "2"]


def test_a_gpu_that_is_taken_is_waited_for():
    slots = Slots(cores=8, gpus=("0",))
    one = Device(kind="cuda", threads=1)
    order = []

    def second() -> None:
        with slots.lend(one, NEVER):
            order.append("second")

    with slots.lend(one, NEVER):
        waiting = threading.Thread(target=second)
        waiting.start()
        waiting.join(0.1)
        order.append("first")
    waiting.join()
    assert order == ["first", "second"]


def test_waiting_ends_when_the_run_is_cancelled():
    slots, cancel = Slots(cores=1), threading.Event()
    with slots.lend(Device(threads=1), NEVER):
        cancel.set()
        with slots.lend(Device(threads=1), cancel):
            pass
    with slots.lend(Device(threads=1), NEVER):  # what was lent twice is one core again
        pass
    assert slots._free_cores == 1


@pytest.mark.parametrize(
    ("visible", "gpus"), [("", ()), ("-1", ()), ("0,2", ("0", "2")), ("GPU-1a, GPU-2b", ("GPU-1a", "GPU-2b"))]
)
def test_the_gpus_that_we_may_see_are_the_ones_to_lend(monkeypatch, visible: str, gpus: tuple[str, ...]):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert usable_gpus() == gpus


def test_there_is_a_core():
    assert usable_cores() >= 1


@pytest.fixture
def own_claims(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Claims in a folder of this test, for child processes too."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)


HOLDER = """
import sys, threading, time
from flows.slots import Slots
from stages.contract import Device
with Slots(cores=8, gpus=("0", "1")).lend(Device(kind="cuda", count=1, threads=1), threading.Event()) as lent:
    print(lent["CUDA_VISIBLE_DEVICES"], flush=True)
    time.sleep(60)
"""


def test_a_gpu_of_another_process_is_not_lent_until_that_process_is_dead(own_claims: None):
    with subprocess.Popen([sys.executable, "-c", HOLDER], stdout=subprocess.PIPE, text=True) as other:
        theirs = other.stdout.readline().strip()
        here = Slots(cores=8, gpus=("0", "1"))
        with here.lend(Device(kind="cuda", threads=1), NEVER) as lent:
            assert {theirs, lent["CUDA_VISIBLE_DEVICES"]} == {"0", "1"}
        got = threading.Event()

        def both() -> None:
            with here.lend(Device(kind="cuda", count=2, threads=1), NEVER):
                got.set()

        waiting = threading.Thread(target=both)
        waiting.start()
        assert not got.wait(0.5)
        (free,) = claim(("0", "1"), 1) or []  # who waits for two holds none
        assert free.gpu != theirs
        free.release()
        other.kill()
    assert got.wait(120)
    waiting.join()
