"""SIGKILL of the worker, of the flow, and of both, in the middle of each stage that a pool runs.

One run meets one death in each of its four accelerated stages, so that three runs are all twelve cases. What comes out
is compared with a run in one process that nothing disturbed.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
from heldstages import ACCELERATED, HeldStages, claimed, toy_recipe
from lab import Lab, command_line, wait_for
from toyrun import request, run_toy

from artifacts.backend import open_backend
from artifacts.lease import holders
from artifacts.store import Store
from flows.up import start_time

pytestmark = pytest.mark.slow

DEVICES = ["devices.train.kind=cuda", "devices.train.count=2"]  # a "GPU" by name: what is claimed is its name's lock
DEVICES += [f"devices.{stage}.kind=cuda" for stage in ("quantize", "evaluate")]


@pytest.fixture(scope="module")
def undisturbed(lab: Lab, held: HeldStages, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the records of an undisturbed run hold; it ran without server, pool and worker."""
    folder = tmp_path_factory.mktemp("undisturbed")
    (folder / "toy.toml").write_text(toy_recipe(lab), encoding="utf-8")
    run_toy(request(folder, lab.submitter.tree, scale="smoke", seed=42, overrides=tuple(DEVICES)))
    return contents(Store.open(str(folder / "store")))


def contents(store: Store) -> dict[str, Any]:
    """Key, files with their sha256, and report of every record but the audit's, by step.

    The audit reads how many seconds the others took, so that no two runs have the same: it is made once more instead.
    """
    found = {}
    for stage, key in store.records():
        record = store.get(stage, key)
        found[f"{stage}[{record.part}]"] = (key, record.files, record.report)
    assert found.pop("audit[]")
    return found


class Death:
    """Who is killed, and what is waited for afterwards."""

    def __init__(self, lab: Lab, run: str) -> None:
        self._lab, self._run = lab, run

    def worker(self) -> None:
        """The worker; the stage that it ran ends by itself."""
        below = self._lab.gpu.descendants()
        self._lab.gpu.kill()
        self._lab.gpu.start_worker("gpu", 1)
        wait_for(lambda: not [pid for pid in below if start_time(pid)], "the killed worker's stage has ended")

    def flow(self) -> None:
        """The flow's process; an automation starts it again."""
        before = self._lab.run(self._run)["run_count"]
        os.kill(self._engine(), signal.SIGKILL)
        wait_for(lambda: self._lab.run(self._run)["run_count"] > before, "the run runs again")

    def both(self) -> None:
        """Both at once."""
        before, engine = self._lab.run(self._run)["run_count"], self._engine()
        below = self._lab.gpu.descendants()
        os.kill(engine, signal.SIGKILL)
        self._lab.gpu.kill()
        self._lab.gpu.start_worker("gpu", 1)
        wait_for(lambda: not [pid for pid in below if start_time(pid)], "the killed worker's stage has ended")
        wait_for(lambda: self._lab.run(self._run)["run_count"] > before, "the run runs again")

    def _engine(self) -> int:
        (engine,) = self._lab.engines(self._run)
        return engine


@pytest.mark.parametrize("who", ["worker", "flow", "both"])
def test_a_kill_in_each_dispatched_stage_costs_a_retry_and_changes_no_byte(
    lab: Lab, held: HeldStages, undisturbed: dict[str, Any], who: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    url = f"{lab.store}-{who}"
    asked = {"toml": toy_recipe(lab), "scale": "smoke", "seed": 42, "overrides": DEVICES, "store": url}
    held.set("hold", *ACCELERATED)
    run = lab.score(**asked)
    died: dict[str, dict[str, Any]] = {}
    for stage in ACCELERATED:
        held.wait_in(stage)
        died[stage] = lab.stages(stage=stage, store=url)[-1]
        if stage == "train":
            assert len([pid for pid in lab.gpu.descendants() if "stages.train" in command_line(pid)]) == 3  # two ranks
            wait_for(lambda: mirrored(url, died["train"]), "a checkpoint is in the store")
        getattr(Death(lab, run), who)()
        held.clear("hold", stage)
    lab.completed(run)

    for stage in ACCELERATED:
        sent = lab.stages(key=died[stage]["parameters"]["key"], store=url)
        assert [each["state"]["type"] for each in sent] == ["COMPLETED"] if who == "flow" else ["CRASHED", "COMPLETED"]
        if who != "flow":
            assert "its worker is gone" in sent[0]["state"]["message"]
    store = Store.open(url)
    first_step = 0 if who == "flow" else 10  # a training that nobody touched goes on, the others from the checkpoint
    trained = store.get("train", died["train"]["parameters"]["key"])
    assert f"from step {first_step} with ranks 2\n" in store.read_object(trained.provenance["log"]).decode()
    assert contents(store) == undisturbed
    assert {finding.kind for finding in store.verify()} <= {"dangling name"}
    nothing_is_held(lab, held, url)

    again = lab.score(**asked)
    lab.completed(again)
    steps = next(each for each in store.list_runs() if each.get("flow_run") == again)["steps"]
    assert {step["state"] for step in steps} == {"cached"}
    monkeypatch.chdir(tmp_path)  # a store elsewhere has its logs and scratch here
    (tmp_path / "toy.toml").write_text(asked["toml"], encoding="utf-8")
    options = {"scale": "smoke", "seed": 42, "overrides": tuple(DEVICES), "store": url, "force": ("audit",)}
    *cached, audit = run_toy(request(tmp_path, lab.submitter.tree, **options))
    assert {outcome.state for outcome in cached} == {"cached"}
    assert (audit.step.stage, audit.state, audit.note) == ("audit", "ran", "")  # the same bytes, or it were a conflict


def mirrored(url: str, train: dict[str, Any]) -> bool:
    """Whether the store has a checkpoint of a training."""
    return open_backend(url).entry(f"attempts/{train['parameters']['key']}/manifest.json") is not None


def nothing_is_held(lab: Lab, held: HeldStages, url: str) -> None:
    """No device, lease, checkpoint, slot of the pool or process is left, and the device was never held twice."""
    assert not held.held_twice()
    assert claimed(lab) == []
    backend = open_backend(url)
    assert holders(backend) == {}
    assert [entry.path for entry in backend.walk("attempts")] == []
    holding = {"state": {"type": {"any_": ["PENDING", "RUNNING", "CANCELLING"]}}}
    assert lab.post("flow_runs/filter", flow_runs=holding) == []
