"""A worker has taken a stage and its process has not begun: slow is alive, silent is dead, and nobody runs twice."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from lab import Lab, Machine, wait_for

from artifacts.store import Store
from flows.signs import COUNT, STARTING
from flows.up import start_time

pytestmark = pytest.mark.slow
SEEDS = count(500)  # each test trains something that nobody has trained

# What the process of a stage's run imports last before it begins, on a disk that is as slow as the test wants it. A
# worker imports it too, when one of its runs is cancelled.
SLOW = """
import os
import sys
import time

if sys.argv[0].endswith("engine.py"):
    with open({folder!r} + "/came", "a") as came:
        came.write(str(os.getpid()) + "\\n")
    while os.path.exists({folder!r} + "/hold"):
        time.sleep(0.1)
"""


class Disk:
    """The stages' machine's, on which starts take as long as the test wants."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def hold(self) -> None:
        """From now on nothing begins."""
        (self._folder / "hold").touch()

    def go(self) -> None:
        """What has waited begins."""
        (self._folder / "hold").unlink(missing_ok=True)

    def came(self, times: int) -> list[int]:
        """The processes that have come so far, once they are so many."""
        path = self._folder / "came"
        return wait_for(
            lambda: found if path.exists() and len(found := [*map(int, path.read_text().split())]) >= times else [],
            f"{times} processes are being started",
        )


@pytest.fixture
def disk(lab: Lab, tmp_path: Path) -> Iterator[Disk]:
    """It holds from the beginning."""
    module = lab.gpu.tree / "flows" / "deployed_stage.py"
    before = module.read_text(encoding="utf-8")
    assert "\nimport os\n" in before
    module.write_text(before.replace("\nimport os\n", SLOW.format(folder=str(tmp_path)), 1), encoding="utf-8")
    found = Disk(tmp_path)
    found.hold()
    yield found
    found.go()
    module.write_text(before, encoding="utf-8")
    if lab.gpu.worker is None:
        lab.gpu.start_worker("gpu", 1)


def start(lab: Lab, recipe: str, disk: Disk) -> tuple[str, dict[str, Any]]:
    """A run, and that of its training, whose process is being started."""
    seed = next(SEEDS)
    run = lab.score(toml=recipe, scale="smoke", seed=seed)
    disk.came(1)
    (train,) = lab.stages(stage="train", seed=seed)
    assert (train["state"]["type"], train["state"]["name"]) == ("PENDING", STARTING)
    return run, train


def attempts(lab: Lab, train: dict[str, Any]) -> list[str]:
    """State of every run at a training's key, in order."""
    return [run["state"]["type"] for run in lab.stages(key=train["parameters"]["key"])]


def trained_by(lab: Lab, train: dict[str, Any]) -> str:
    """The run that the training's record is of."""
    return Store.open(lab.store).get("train", train["parameters"]["key"]).provenance["flow_run"]


def test_a_start_that_takes_longer_than_a_death_needs_to_be_noticed_is_none(lab: Lab, recipe: str, disk: Disk):
    run, train = start(lab, recipe, disk)
    wait_for(lambda: lab.run(train["id"])["labels"].get(COUNT, 0) >= 11, "its worker has spoken for 22 s")
    assert attempts(lab, train) == ["PENDING"]
    disk.go()
    lab.completed(train["id"])
    lab.stop(run)
    assert attempts(lab, train) == ["COMPLETED"]


def test_a_machine_that_goes_away_while_it_starts_a_stage_is_noticed_as_soon_as_one_that_runs_it(
    lab: Lab, recipe: str, disk: Disk
):
    run, train = start(lab, recipe, disk)
    lab.gpu.kill(everything=True)
    disk.go()
    lab.gpu.start_worker("gpu", 1)
    wait_for(lambda: attempts(lab, train) == ["CRASHED", "COMPLETED"], "it was sent again, to the next worker")
    lab.stop(run)
    assert "no sign of life for 15 s" in lab.run(train["id"])["state"]["message"]


def test_a_start_that_was_declared_dead_because_its_worker_stood_still_gives_up_when_it_begins(
    lab: Lab, recipe: str, disk: Disk, spare: Machine
):
    run, train = start(lab, recipe, disk)
    os.kill(lab.gpu.worker.pid, signal.SIGSTOP)
    try:
        wait_for(lambda: attempts(lab, train)[0] == "CRASHED", "its silence is noticed")
        spare.start_worker("gpu", 1)
        first, _ = disk.came(2)
        assert attempts(lab, train) == ["CRASHED", "PENDING"]
        assert start_time(first)
        disk.go()
        wait_for(lambda: attempts(lab, train) == ["CRASHED", "COMPLETED"], "its successor has trained")
        lab.stop(run)
        wait_for(lambda: not start_time(first), "it has given up")
    finally:
        os.kill(lab.gpu.worker.pid, signal.SIGCONT)
    dead, trained = lab.stages(key=train["parameters"]["key"])
    assert dead["run_count"] == 1  # it has begun: Prefect's server lets it
    assert dead["state"]["type"] == "CRASHED"
    assert "no sign of life for 15 s" in dead["state"]["message"]
    assert trained_by(lab, train) == trained["id"]


def test_a_stage_that_is_cancelled_while_it_starts_leaves_no_process(lab: Lab, recipe: str, disk: Disk):
    run, train = start(lab, recipe, disk)
    (process,) = disk.came(1)
    lab.cancel(train["id"])
    wait_for(lambda: not start_time(process), "its process has ended", 15)
    assert lab.ended(train["id"], 15)["type"] == "CANCELLED"
    assert lab.ended(run, 15)["type"] == "CANCELLED"
    assert attempts(lab, train) == ["CANCELLED"]
