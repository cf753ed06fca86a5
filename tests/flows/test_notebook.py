"""What a notebook opens is what a run made."""

from __future__ import annotations

from pathlib import Path

import pytest
from toyriver import make_tree
from toyrun import request, run_in_one_thread, write_recipe

import flows.step
from artifacts.errors import NotFound
from flows import notebook as fairway
from flows.session import Outcome
from stages.contract import StageError


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Outcome]]:
    """A store with a toy run, and its outcomes."""
    folder = tmp_path_factory.mktemp("notebook")
    write_recipe(folder)
    with pytest.MonkeyPatch.context() as patch:
        from toyrun import launch_here

        patch.setattr(flows.step, "launch", launch_here)
        return folder / "store", run_in_one_thread(request(folder, make_tree(folder / "tree")))


def test_an_artifact_is_opened_by_its_name_and_read(made: tuple[Path, list[Outcome]]):
    store, outcomes = made
    train = next(outcome for outcome in outcomes if outcome.step.stage == "train")
    opened = fairway.open(train.artifact, store)
    assert opened.record == train.record
    assert opened.report == {"toy": "train"}
    assert set(opened.roles) == {"raw", "ema", "snapshots", "curve"}
    (line,) = opened.lines("curve")
    assert line["train_loss"] == 3.0
    file = opened.files("raw")[0]
    assert (opened.path("raw") / file.path).read_bytes() == opened.read("raw")
    assert {each.record.label for each in opened.inputs()["shards"]} == {
        "tokenize[train-00000]",
        "tokenize[train-00001]",
    }


def test_what_is_asked_wrongly_is_told(made: tuple[Path, list[Outcome]]):
    store, _ = made
    with pytest.raises(NotFound):
        fairway.open("toy/full/1337/train@9", store)
    with pytest.raises(StageError, match="raw"):
        fairway.open("toy/full/1337/train", store).read("weights")
    with pytest.raises(StageError, match="no field"):
        fairway.run("quickstart", overrides=["train.stepz=1"], store=store)


def test_two_artifacts_are_compared_as_on_the_command_line(made: tuple[Path, list[Outcome]]):
    store, outcomes = made
    scored = [outcome.artifact for outcome in outcomes if outcome.step.stage == "evaluate"]
    assert fairway.compare(scored[0], scored[1], store=store)
    assert [run["state"] for run in fairway.runs(store)] == ["completed"]
