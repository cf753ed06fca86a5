"""Who is taken for dead or started again by hand, and lives: one process goes on, and no device is used twice."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from heldstages import HeldStages, toy_recipe
from lab import Lab, Machine, command_line, wait_for

from artifacts.backend import open_backend
from artifacts.store import Store
from flows.up import start_time

pytestmark = pytest.mark.slow
Start = Callable[..., tuple[str, dict[str, Any]]]

DEVICE = ["devices.train.kind=cuda"]
BOTH_DEVICES = [*DEVICE, "devices.train.count=2"]


@pytest.fixture
def training(lab: Lab, held: HeldStages) -> Iterator[Start]:
    """Starts a run with a seed; it and its train's run once that stands at step 10 with its checkpoint in the store."""

    def start(seed: int, overrides: list[str] = DEVICE) -> tuple[str, dict[str, Any]]:
        held.set("hold", "train")
        run = lab.score(toml=toy_recipe(lab), scale="smoke", seed=seed, overrides=overrides)
        held.wait_in("train")
        train = lab.running_stage("train", seed=seed)
        manifest = f"attempts/{train['parameters']['key']}/manifest.json"
        wait_for(lambda: open_backend(lab.store).entry(manifest), "a checkpoint is in the store")
        return run, train

    yield start
    held.clear("hold", "train")


def attempts(lab: Lab, train: dict[str, Any]) -> list[str]:
    """State of every run at a training's key, in order."""
    return [run["state"]["type"] for run in lab.stages(key=train["parameters"]["key"])]


def said(lab: Lab, train: dict[str, Any]) -> str:
    """The log of the training that ended well."""
    store = Store.open(lab.store)
    return store.read_object(store.get("train", train["parameters"]["key"]).provenance["log"]).decode()


def test_a_worker_that_was_declared_dead_but_lives_gives_up_and_no_gpu_is_booked_twice(
    lab: Lab, held: HeldStages, training: Start, spare: Machine
):
    run, train = training(301, BOTH_DEVICES)
    below = lab.gpu.descendants()
    frozen = [lab.gpu.worker.pid, *below]
    try:
        for pid in frozen:
            os.kill(pid, signal.SIGSTOP)
        wait_for(lambda: attempts(lab, train)[0] == "CRASHED", "the silent attempt is declared dead")
        spare.start_worker("gpu", 1)
        wait_for(lambda: attempts(lab, train) == ["CRASHED", "RUNNING"], "another worker has taken it")
        waiting = f"leases/{train['parameters']['key']}/{2:08d}.json"
        wait_for(lambda: open_backend(lab.store).entry(waiting), "the successor has the lease")
        assert not [
            pid for pid in spare.descendants() if "stages.train" in command_line(pid)
        ]  # the devices are claimed
    finally:
        for pid in frozen:
            os.kill(pid, signal.SIGCONT)
    wait_for(lambda: not [pid for pid in below if start_time(pid)], "the first attempt has given up")
    held.clear("hold", "train")
    wait_for(lambda: attempts(lab, train) == ["CRASHED", "COMPLETED"], "its successor has ended well")
    lab.stop(run)
    assert "from step 10 " in said(lab, train)
    assert not held.held_twice()
    assert lab.gpu.worker.poll() is None
    assert {finding.kind for finding in Store.open(lab.store).verify()} <= {"dangling name"}


def test_a_stage_that_is_scheduled_again_while_it_runs_starts_once_more_and_its_worker_lives(
    lab: Lab, held: HeldStages, training: Start
):
    run, train = training(302)
    below = lab.gpu.descendants()
    again = {"type": "SCHEDULED", "name": "Scheduled", "message": "by hand"}
    lab.post(f"flow_runs/{train['id']}/set_state", state=again, force=True)
    wait_for(lambda: not [pid for pid in below if start_time(pid)], "the first process has given up")
    wait_for(lambda: lab.run(train["id"])["run_count"] == 2, "the same worker has started it again")
    held.clear("hold", "train")
    lab.completed(train["id"])
    lab.stop(run)
    assert lab.gpu.worker.poll() is None
    assert attempts(lab, train) == ["COMPLETED"]
    assert "from step 10 " in said(lab, train)
    assert not held.held_twice()


def test_a_run_that_was_declared_dead_but_lives_leaves_its_stage_to_its_successor(
    lab: Lab, held: HeldStages, training: Start
):
    run, train = training(303)
    (first,) = lab.engines(run)
    lab.post(f"flow_runs/{run}/set_state", state={"type": "CRASHED", "name": "Crashed"}, force=True)
    wait_for(lambda: lab.run(run)["run_count"] == 2, "the automation has started it again")
    wait_for(lambda: not start_time(first), "the first process has given up")
    assert len(lab.engines(run)) == 1
    assert attempts(lab, train) == ["RUNNING"]
    held.clear("hold", "train")
    lab.completed(train["id"])
    lab.stop(run)
    assert attempts(lab, train) == ["COMPLETED"]
    assert "from step 0 " in said(lab, train)
