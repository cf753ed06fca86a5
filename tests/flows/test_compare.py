"""Comparing on the toy river: what differs, by how much against the noise, and why."""

from __future__ import annotations

import json
import math
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from toyrun import launch_here
from toyseeds import Quiet, ask, conduct, scored_tree

from artifacts.store import Store
from flows import step as flows_step
from flows.compare import compare, find_subject
from flows.prepare import Request, prepare
from flows.seeds import declare, run_set
from stages.contract import StageError


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One toy tree for all tests here that leave it as it is."""
    return scored_tree(tmp_path_factory.mktemp("toys"))


@pytest.fixture
def asked(tmp_path: Path, tree: Path, monkeypatch: pytest.MonkeyPatch) -> Request:
    """The toy recipe, in a fresh store; stages run in this process."""
    monkeypatch.setattr(flows_step, "launch", launch_here)
    return ask(tmp_path, tree)


def run_seeds(asked: Request, seeds: tuple[int, ...], *overrides: str) -> str:
    asked = replace(asked, overrides=overrides)
    declared = declare(asked, seeds)
    run_set(declared, asked, conduct, Quiet().show)
    return declared.id


def run(asked: Request, seed: int, *overrides: str) -> str:
    with prepare(replace(asked, seed=seed, overrides=overrides)) as prepared:
        return conduct(prepared)["run"]


def between(asked: Request, a: str, b: str) -> dict[str, Any]:
    store = Store.open(asked.store)
    return json.loads(json.dumps(compare(store, find_subject(store, a), find_subject(store, b))))


def test_sets_of_equal_seeds_differ_by_fields_pairs_and_the_stages_below_the_change(asked: Request):
    a = run_seeds(asked, (1, 2))
    b = run_seeds(asked, (2, 1), "quantize.matrices.bits=5")
    found = between(asked, a, b)
    assert found["fields"] == [{"path": "quantize.matrices.bits", "a": 6, "b": 5}]
    by_name = {score["protocol"]: score for score in found["scores"]}
    assert list(by_name) == ["raw", "roundtrip", "sliding"]
    assert by_name["raw"]["difference"] == 0
    store = Store.open(asked.store)
    values = [{x["seed"]: x["scores"]["sliding"]["bpb"] for x in store.read_set(each)["attempts"]} for each in (a, b)]
    differences = [values[1][seed] - values[0][seed] for seed in (1, 2)]
    assert by_name["sliding"]["difference"] == pytest.approx(statistics.mean(differences))
    assert by_name["sliding"]["paired"]["improvement"] == pytest.approx(-statistics.mean(differences))
    assert by_name["sliding"]["noise"] is None
    stages = {stage["step"]: stage for stage in found["stages"]}
    assert stages["quantize"]["why"] == ["config: quantize.matrices.bits 6 -> 5"]
    assert stages["compress"]["why"] == ["inputs: quantized changed"]
    assert [name for name, stage in stages.items() if stage["equal"]] == [
        "corpus", "vocabulary", "tokenize[train-00000]", "tokenize[train-00001]", "tokenize[val-00000]", "train",
        "average", "evaluate[raw]", "overlap",
    ]  # fmt: skip


def test_two_single_runs_are_measured_by_the_noise_of_a_set_of_either(asked: Request):
    a, b = run(asked, 1), run(asked, 1, "quantize.matrices.bits=5")
    before = between(asked, a, b)
    assert all(score["noise"] is None for score in before["scores"])
    assert any("fairway seeds" in note for note in before["notes"])
    name = run_seeds(asked, (5, 6))
    sliding = next(score for score in between(asked, a, b)["scores"] if score["protocol"] == "sliding")
    std = statistics.stdev(
        attempt["scores"]["sliding"]["bpb"] for attempt in Store.open(asked.store).read_set(name)["attempts"]
    )
    assert sliding["noise"] == {
        "set": name, "n": 2, "std": pytest.approx(std),
        "times": pytest.approx(abs(sliding["difference"]) / std / math.sqrt(2)),
    }  # fmt: skip
    assert sliding["welch"]["p"] is None


def test_scores_of_other_data_are_not_subtracted(asked: Request):
    a, b = run(asked, 1), run(asked, 1, "evaluate.sliding.max_targets=512")
    found = between(asked, a, b)
    assert [score["protocol"] for score in found["scores"]] == ["raw", "roundtrip"]
    assert found["notes"][0].startswith("sliding was scored on other data (documents ")
    other = run(asked, 1, "corpus.shard_bytes=1048576")
    assert between(asked, a, other)["scores"] == []


def test_a_run_and_itself_do_not_differ(asked: Request):
    a = run(asked, 1)
    found = between(asked, a, a)
    assert found["fields"] == []
    assert all(stage["equal"] for stage in found["stages"])
    assert {score["difference"] for score in found["scores"]} == {0}
    assert [size["difference"] for size in found["bytes"]] == [0, 0, 0]


def test_a_run_is_named_by_a_part_of_its_id(asked: Request):
    a = run(asked, 1)
    assert between(asked, a[4:-1], a)["a"] == between(asked, a, a)["a"]


def test_recipes_can_be_compared_before_they_run_and_artifacts_of_one_stage(asked: Request):
    found = between(asked, "pr398", "pr417")
    assert {"path": "average.kind", "a": "ema", "b": "swa"} in found["fields"]
    assert found["scores"] == found["bytes"] == found["stages"] == []
    run(asked, 1)
    run(asked, 2)
    found = between(asked, "toy/full/1/train", "toy/full/2/train")
    assert found["stages"][0]["why"] == ["seed: 1 -> 2"]
    assert not found["equal_bytes"]
    with pytest.raises(StageError, match="artifacts of one stage are compared"):
        between(asked, "toy/full/1/train", "toy/full/1/weigh")
    with pytest.raises(StageError, match="an artifact is compared with an artifact"):
        between(asked, "toy/full/1/train", "pr398")
    with pytest.raises(StageError, match="none called 'pr39'; did you mean 'pr398'"):
        between(asked, "pr39", "pr398")
