"""Accepting an edit: equal bytes make older records serve the new code, other bytes are refused."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from artifacts.record import Record
from artifacts.store import Store
from flows.accept import accept
from flows.identity import Identity, find
from flows.launch import StageFailed
from flows.prepare import Prepared, Request, prepare
from flows.river import river
from flows.step import hit_or_run
from stages.contract import StageError

ROOT = Path(__file__).resolve().parents[2]
ROOMS = ("artifacts", "configs", "flows", "model", "stages")

STAGE = '''
"""Writes a line into every role."""
from stages.STAGE.config import Config
from stages.STAGE.work import line
from stages.contract import fresh_role

NAMES = {"train": "00000.parquet", "val": "00000.parquet"}

def run(config, inputs, out, runtime, **seed):
    for role in Config.SPEC.outputs:
        (fresh_role(out, role) / NAMES.get(role, "file")).write_text(line(role))
    return {}
'''
WORK = "def line(role):\n    return 'of ' + role\n"
FASTER = "def line(role):\n    return f'of {role}'\n"
OTHER = "def line(role):\n    return f'for {role}'\n"
BROKEN = "def line(role):\n    raise ValueError('no line')\n"


class Project:
    """A copy of the tree whose first stages do next to nothing, with a store."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.tree = folder / "tree"
        for room in ROOMS:
            shutil.copytree(ROOT / room, self.tree / room, ignore=shutil.ignore_patterns("__pycache__"))
        for stage in ("corpus", "vocabulary", "tokenize", "train"):
            self.write(f"stages/{stage}/stage.py", STAGE.replace("STAGE", stage))
            self.write(f"stages/{stage}/work.py", WORK)
        (folder / "text.jsonl").write_text('{"text": "a"}\n')

    def write(self, name: str, text: str) -> None:
        (self.tree / name).write_text(text, encoding="utf-8")

    def prepare(self):
        return prepare(
            Request(
                recipe="base11",
                scale="smoke",
                seed=1,
                store=str(self.folder / "store"),
                overrides=(f"corpus.source='{self.folder / 'text.jsonl'}'",),
                source_root=self.tree,
            )
        )

    def run(self, until: str) -> Record:
        with self.prepare() as prepared:
            return flow(prepared, until)

    def accept(self, old: Record, new: Record | None = None, reason: str = "an f-string"):
        with self.prepare() as prepared:
            return accept(prepared, old, reason, new, who="me")

    @property
    def store(self) -> Store:
        return Store.open(self.folder / "store")


def flow(prepared: Prepared, until: str) -> Record:
    outputs = {}
    for step in river(prepared.loaded.recipe, 1, prepared.outside, outputs):
        record = hit_or_run(step, prepared.session).record
        outputs[step.id] = record.files
        if step.stage == until:
            return record
    raise AssertionError(until)


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path)


def test_equal_bytes_let_old_records_serve_the_new_code(project: Project) -> None:
    old = project.run("train")
    project.write("stages/train/work.py", FASTER)
    acceptance = project.accept(old)
    assert (acceptance.stage, acceptance.reason, acceptance.who) == ("train", "an f-string", "me")
    roles = {role: old.role_digest(role) for role in ("raw", "ema", "snapshots", "curve")}
    assert set(acceptance.evidence["compared"]["train"]) == set(roles)
    assert project.run("train").key == old.key
    code = dict(Identity(project.tree).closure("train").digests)
    assert code != old.components["code"]
    assert find(project.store, {**old.components, "code": code}) == old


def test_other_bytes_are_refused_and_leave_nothing(project: Project) -> None:
    old = project.run("train")
    project.write("stages/train/work.py", OTHER)
    with pytest.raises(StageError, match="train at smoke scale gives others in raw, ema, snapshots, curve"):
        project.accept(old)
    assert project.store.acceptances("train") == []
    assert list(project.store.records("train")) == [("train", old.key)]  # neither side was published


def test_a_side_that_fails_proves_nothing(project: Project) -> None:
    old = project.run("corpus")
    project.write("stages/corpus/work.py", BROKEN)
    with pytest.raises(StageFailed, match="no line"):
        project.accept(old)
    assert project.store.acceptances("corpus") == []


def test_one_side_may_lack_a_field_that_is_off(project: Project) -> None:
    old = project.run("corpus")
    name = "stages/corpus/config.py"
    text = (project.tree / name).read_text()
    lines = [line for line in text.splitlines() if not line.startswith("    max_documents:")]
    assert len(lines) == len(text.splitlines()) - 1
    project.write(name, "\n".join(lines))
    project.write("stages/corpus/work.py", FASTER)
    assert project.accept(old).stage == "corpus"


def test_each_part_of_a_mapped_stage_is_compared(project: Project) -> None:
    old = project.run("train")
    assert old.stage == "train"
    tokenized = project.store.latest("base11", "smoke", 1, "tokenize", "val-00000")
    assert tokenized is not None
    project.write("stages/tokenize/work.py", FASTER)
    evidence = project.accept(tokenized).evidence
    assert set(evidence["compared"]) == {"tokenize[train-00000]", "tokenize[val-00000]"}


def test_a_second_artifact_can_be_the_new_side(project: Project) -> None:
    old = project.run("train")
    project.write("stages/train/work.py", FASTER)
    new = project.run("train")
    assert new.key != old.key
    project.write("stages/train/work.py", OTHER)  # the tree goes on; the artifacts' own sources count
    acceptance = project.accept(old, new)
    assert (acceptance.old, acceptance.new) == (old.components["code"], new.components["code"])


def test_equal_codes_are_nothing_to_accept(project: Project) -> None:
    old = project.run("corpus")
    project.write("stages/corpus/work.py", f"# a remark\n{WORK}")
    with pytest.raises(StageError, match="those of corpus are the same"):
        project.accept(old)


def test_artifacts_of_two_stages_are_refused(project: Project) -> None:
    old, new = project.run("vocabulary"), project.run("corpus")
    with pytest.raises(StageError, match="got vocabulary and corpus"):
        project.accept(old, new)


def test_without_its_source_an_artifact_proves_nothing(project: Project) -> None:
    old = project.run("corpus")
    gone = Record(old.stage, old.part, old.key, old.files, old.components, {}, {}, {})
    with pytest.raises(StageError, match=r"source of corpus \w+ is not in the store"):
        project.accept(gone)
