"""A machine, a person or a signal ends something in the middle of a training; kills are in `test_stage_kills.py`."""

from __future__ import annotations

import os
import re
import signal
import tempfile
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from lab import LIMIT_S, Lab, wait_for
from toyriver import behaving

from artifacts.store import Store
from flows.up import start_time
from flows.vigil import HEARTBEAT

pytestmark = pytest.mark.slow

# Counts to `steps` with a checkpoint each second, as train does: SIGTERM ends it between two steps.
TRAINING = """
if config.steps < 30:
    return
def told(*ignored):
    (runtime.checkpoints / "told").write_text("")
    sys.exit(143)
signal.signal(signal.SIGTERM, told)
state = runtime.checkpoints / "step"
first = int(state.read_text()) if state.exists() else 0
print("from step", first)
for step in range(first, config.steps):
    runtime.report_progress(step, config.steps, "steps", loss=2.5)
    time.sleep(0.1)
    if step % 10 == 9:
        (runtime.checkpoints / "step.tmp").write_text(str(step + 1))
        os.replace(runtime.checkpoints / "step.tmp", state)
"""
SEEDS = count(100)  # each test trains something that nobody has trained


@pytest.fixture
def training(lab: Lab) -> Iterator[None]:
    """The submitter's train takes its time: a tenth of a second a step."""
    with behaving(lab.submitter.tree, "train", TRAINING) as path:
        text = path.read_text(encoding="utf-8").replace("act(runtime, out)", "act(runtime, out, config)")
        path.write_text(text, encoding="utf-8")
        yield
    for machine, pool, limit in ((lab.submitter, "cpu", 0), (lab.gpu, "gpu", 1)):
        if machine.worker is None:
            machine.start_worker(pool, limit)


def start(lab: Lab, recipe: str, steps: int, seed: int | None = None) -> tuple[str, dict[str, Any]]:
    """A run whose training takes `steps` tenths of a second; it and its train's run, once that has made some steps."""
    seed = next(SEEDS) if seed is None else seed
    run = lab.score(toml=recipe, scale="smoke", seed=seed, overrides=[f"train.steps={steps}"])
    train = lab.running_stage("train", seed=seed)
    wait_for(lambda: checkpoint(lab, train) >= 10, "ten steps are in the store")
    return run, train


def checkpoint(lab: Lab, train: dict[str, Any]) -> int:
    """The step that the store's checkpoint is at; 0 if there is none."""
    with tempfile.TemporaryDirectory() as folder:
        restored = Path(folder) / "checkpoints"
        there = Store.open(lab.store).restore_attempt(train["parameters"]["key"], restored)
        return int((restored / "step").read_text(encoding="ascii")) if there else 0


def said(lab: Lab, train: dict[str, Any]) -> str:
    """The log of the training that ended well."""
    store = Store.open(lab.store)
    found = store.get("train", train["parameters"]["key"])
    assert found is not None
    return store.read_object(found.provenance["log"]).decode()


def attempts(lab: Lab, train: dict[str, Any]) -> list[str]:
    """State of every run at a training's key, in order."""
    return [run["state"]["type"] for run in lab.stages(key=train["parameters"]["key"])]


def stage_processes(lab: Lab) -> list[int]:
    """Processes below the stages' worker that are no worker."""
    return lab.gpu.descendants()


def all_sound(lab: Lab) -> None:
    """Nothing half or lost in the store."""
    assert {finding.kind for finding in Store.open(lab.store).verify()} <= {"dangling name"}


def test_a_machine_that_is_gone_is_declared_dead_after_a_silence(lab: Lab, recipe: str, training: None):
    run, train = start(lab, recipe, 150)
    lab.gpu.kill(everything=True)
    lab.gpu.start_worker("gpu", 1)
    lab.completed(run)
    assert attempts(lab, train) == ["CRASHED", "COMPLETED"]
    assert int(re.fullmatch(r"from step (\d+)\n", said(lab, train))[1]) >= 10
    all_sound(lab)


def test_cancelling_a_run_stops_its_stage_within_15_s_and_the_next_run_goes_on(lab: Lab, recipe: str, training: None):
    run, train = start(lab, recipe, 300)
    below = stage_processes(lab)
    assert len(below) >= 3  # Prefect's engine, the program, the stage
    lab.cancel(run)
    wait_for(lambda: not [pid for pid in below if start_time(pid)], "no process of the stage is left", 15)
    assert lab.ended(run)["type"] == "CANCELLED"
    assert lab.ended(train["id"])["type"] == "CANCELLED"
    assert lab.document()["state"] == "cancelled"
    reached = checkpoint(lab, train)
    again = lab.score(toml=recipe, scale="smoke", seed=train["parameters"]["seed"], overrides=["train.steps=300"])
    second = lab.running_stage("train", seed=train["parameters"]["seed"])
    assert second["parameters"]["key"] == train["parameters"]["key"]
    lab.completed(again)
    assert int(re.fullmatch(r"from step (\d+)\n", said(lab, train))[1]) == reached >= 10
    all_sound(lab)


def test_cancelling_a_stage_cancels_its_run_within_15_s(lab: Lab, recipe: str, training: None):
    run, train = start(lab, recipe, 300)
    below = stage_processes(lab)
    lab.cancel(train["id"])
    wait_for(lambda: not [pid for pid in below if start_time(pid)], "no process of the stage is left", 15)
    assert lab.ended(train["id"])["type"] == "CANCELLED"
    assert lab.ended(run)["type"] == "CANCELLED"
    assert attempts(lab, train) == ["CANCELLED"]


def test_sigterm_of_the_machine_leaves_a_checkpoint_and_the_stage_is_sent_again(lab: Lab, recipe: str, training: None):
    run, train = start(lab, recipe, 200)
    (engine,) = lab.engines(train["id"], lab.gpu)
    os.kill(engine, signal.SIGTERM)
    wait_for(lambda: attempts(lab, train)[0] == "CRASHED", "the first attempt says that it was ended", 30)
    lab.completed(run)
    assert attempts(lab, train) == ["CRASHED", "COMPLETED"]
    assert int(re.fullmatch(r"from step (\d+)\n", said(lab, train))[1]) >= 10


def test_a_worker_that_is_told_to_stop_goes_when_its_stage_has_written_a_checkpoint(
    lab: Lab, recipe: str, training: None, tmp_path: Path
):
    run, train = start(lab, recipe, 200)
    worker, below = lab.gpu.worker, lab.gpu.descendants()
    assert worker is not None
    assert len(below) >= 3
    worker.terminate()
    assert worker.wait(LIMIT_S) == 0
    lab.gpu.worker = None
    assert not [pid for pid in below if start_time(pid)]  # whoever ends with the worker has ended before it
    assert Store.open(lab.store).restore_attempt(train["parameters"]["key"], tmp_path / "restored")
    assert (tmp_path / "restored" / "told").exists()
    lab.gpu.start_worker("gpu", 1)
    assert lab.ended(run)["type"] == "COMPLETED"
    assert attempts(lab, train) == ["CRASHED", "COMPLETED"]


def test_a_run_survives_a_restart_of_the_server(lab: Lab, recipe: str, training: None):
    run, train = start(lab, recipe, 250)
    lab.restart_server()
    lab.completed(run, 240)
    assert attempts(lab, train) == ["COMPLETED"]
    assert said(lab, train) == "from step 0\n"
    all_sound(lab)


def test_a_flow_whose_machine_is_gone_is_found_by_its_silence_and_revived(lab: Lab, recipe: str, training: None):
    run, train = start(lab, recipe, 600)  # its silence lasts longer
    wait_for(lambda: heartbeats(lab, run), "the run has sent a heartbeat")
    lab.submitter.kill(everything=True)
    lab.submitter.start_worker("cpu", 0)
    wait_for(lambda: lab.run(run)["run_count"] == 2, "the run runs again", 240)
    lab.completed(run, 240)
    assert attempts(lab, train) == ["COMPLETED"]
    assert said(lab, train) == "from step 0\n"
    all_sound(lab)


def heartbeats(lab: Lab, run: str) -> int:
    """How often a run has said that it lives."""
    wanted = {"event": {"name": [HEARTBEAT]}, "resource": {"id": [f"prefect.flow-run.{run}"]}}
    return lab.post("events/filter", filter=wanted)["total"]


def test_two_runs_that_need_one_key_compute_it_once(lab: Lab, recipe: str, training: None):
    seed = next(SEEDS)
    asked = {"toml": recipe, "scale": "smoke", "seed": seed, "overrides": ["train.steps=60"]}
    runs = [lab.score(**asked), lab.score(**asked)]
    assert [lab.ended(run)["type"] for run in runs] == ["COMPLETED", "COMPLETED"]
    sent = lab.stages(seed=seed, stage="train")
    assert len(sent) == 1
    all_sound(lab)


# Its parent is the program that runs it, and that one's is Prefect's engine: a machine that always goes away here.
UNLUCKY = """
with open(f"/proc/{os.getppid()}/stat") as stat:
    engine = int(stat.read().rpartition(")")[2].split()[1])
os.kill(engine, signal.SIGTERM)
time.sleep(60)
"""


@pytest.fixture
def unlucky(lab: Lab) -> Iterator[None]:
    """The submitter's train ends whoever runs it."""
    with behaving(lab.submitter.tree, "train", UNLUCKY):
        yield


def test_a_stage_that_is_lost_four_times_fails_its_run_which_says_so(lab: Lab, recipe: str, unlucky: None):
    seed = next(SEEDS)
    ended = lab.ended(lab.score(toml=recipe, scale="smoke", seed=seed))
    assert ended["type"] == "FAILED"
    assert ended["message"].startswith("train was lost 4 times in the pool gpu; last: its machine sent SIGTERM")
    assert [run["state"]["type"] for run in lab.stages(stage="train", seed=seed)] == ["CRASHED"] * 4
    all_sound(lab)
