"""What bad weather is measured by: machines with something wrong, stages that wait, a run that nobody disturbed."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from lab import Lab, Machine, wait_for
from toyriver import behave
from toyrun import launch_here, request, run_in_one_thread

import flows.step
from artifacts.record import File
from artifacts.store import Store

# The least that has every stage: each that is sent costs seconds of real dispatch.
SMALL = 'name = "toy"\n[corpus]\nsource = "{source}"\n[evaluate.roundtrip]\n'
Result = dict[tuple[str, str], tuple[str, tuple[File, ...]]]


@contextmanager
def changed(machine: Machine, pool: str, limit: int, **variables: str) -> Iterator[Machine]:
    """The machine's worker, started again with other variables; afterwards once more with its own."""
    own = machine.environment
    machine.stop()
    machine.environment = {**own, **variables}
    machine.start_worker(pool, limit)
    try:
        yield machine
    finally:
        machine.stop()
        machine.environment = own
        machine.start_worker(pool, limit)


class Gate:
    """Stops a stage of a tree in its middle until it is opened. The stage's key is one that no other test has."""

    def __init__(self, tree: Path, stage: str, folder: Path) -> None:
        self._path = tree / "stages" / stage / "stage.py"
        self._before = self._path.read_text(encoding="utf-8")
        self._arrived, self._open = folder / f"{stage}-arrived", folder / f"{stage}-open"
        body = f"""
runtime.report_progress(1, 9, "steps", loss=2.5)
with open({str(self._arrived)!r}, "a") as here:
    here.write("x")
while not os.path.exists({str(self._open)!r}):
    time.sleep(0.1)
"""
        behave(tree, stage, body)

    def __enter__(self) -> Gate:
        return self

    def __exit__(self, *error: object) -> None:
        self.open()
        self._path.write_text(self._before, encoding="utf-8")

    def wait(self) -> None:
        """Until the stage stands before it."""
        wait_for(self._arrived.exists, f"{self._arrived.name}")

    def open(self) -> None:
        """Let it go on."""
        self._open.touch()

    @property
    def passed(self) -> int:
        """How often a process of the stage came here."""
        return len(self._arrived.read_text(encoding="ascii")) if self._arrived.exists() else 0


def small_recipe(lab: Lab) -> str:
    """A recipe as text; its documents lie on the submitter's machine."""
    source = lab.submitter.folder / "text.txt"
    source.write_text("Some text.\n", encoding="utf-8")
    return SMALL.format(source=source)


def undisturbed(lab: Lab, recipe: str, **asked: Any) -> Result:
    """What the same request makes in a store of its own with nobody in the way; open every gate before."""
    with tempfile.TemporaryDirectory() as name, pytest.MonkeyPatch.context() as patch:
        folder = Path(name)
        (folder / "toy.toml").write_text(recipe, encoding="utf-8")
        patch.setattr(flows.step, "launch", launch_here)
        patch.chdir(folder)
        outcomes = run_in_one_thread(request(folder, lab.submitter.tree, scale="smoke", **asked))
        made = [(o.step.stage, o.step.part, o.record) for o in outcomes if o.step.stage != "audit"]
        return {(stage, part): (record.key, record.files) for stage, part, record in made}


def result(lab: Lab, document: dict[str, Any]) -> Result:
    """What a run of the lab ended with. The audit judges the seconds that each stage took, which nobody repeats."""
    store = Store.open(lab.store)
    made: Result = {}
    for step in document["steps"]:
        found = store.get(step["stage"], step["key"])
        assert found is not None, step
        if step["stage"] != "audit":
            made[step["stage"], step["part"]] = (found.key, found.files)
    return made


def content(store: str | Path) -> dict[tuple[str, str], tuple[tuple[File, ...], dict[str, Any]]]:
    """(stage, key) -> files and report of every record but the audit's."""
    records = [record for record, _ in Store.open(store).all_records()]
    return {(each.stage, each.key): (each.files, each.report) for each in records if each.stage != "audit"}


def all_sound(store: str) -> None:
    """Nothing half or lost in a store."""
    assert {finding.kind for finding in Store.open(store).verify()} <= {"dangling name"}


class Attempts:
    """The runs of a stage that the server has got since this was made.

    Tests of bad weather share one seed: a gate makes the training's key a new one, its result stays the same, and what
    comes after it is found in the store.
    """

    def __init__(self, lab: Lab, stage: str = "train") -> None:
        self._lab, self._stage = lab, stage
        self._before = {run["id"] for run in lab.stages()}

    def all(self) -> list[dict[str, Any]]:
        """In the order in which they were sent."""
        return [run for run in self._lab.stages(stage=self._stage) if run["id"] not in self._before]

    def states(self) -> list[str]:
        """The type of each one's state."""
        return [run["state"]["type"] for run in self.all()]
