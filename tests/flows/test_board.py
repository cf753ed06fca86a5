"""The leaderboard: the best legal score of each configuration, never beside scores of other data."""

from __future__ import annotations

import json
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from toyrun import launch_here
from toyseeds import ask, conduct, scored_tree

from artifacts.store import Store
from flows import step as flows_step
from flows.board import board
from flows.prepare import Request, prepare
from flows.verdicts import words


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One toy tree for all tests here that leave it as it is."""
    return scored_tree(tmp_path_factory.mktemp("toys"))


@pytest.fixture
def asked(tmp_path: Path, tree: Path, monkeypatch: pytest.MonkeyPatch) -> Request:
    """The toy recipe, in a fresh store; stages run in this process."""
    monkeypatch.setattr(flows_step, "launch", launch_here)
    return ask(tmp_path, tree)


def run(asked: Request, seed: int, *overrides: str) -> str:
    with prepare(replace(asked, seed=seed, overrides=overrides)) as prepared:
        return conduct(prepared)["run"]


def change(asked: Request, run_id: str, **fields: Any) -> None:
    """Let a run's document say something else; `score_` fields go to its scores."""
    store = Store.open(asked.store)
    document = store.read_run(run_id)
    for name, value in fields.items():
        protocol = name.removeprefix("score_")
        if protocol != name:
            document["scores"][protocol] |= value
        else:
            document[name] = value
    store.write_run(document)


def rows(asked: Request, **options: Any) -> list[dict[str, Any]]:
    (group,) = groups(asked, **options)
    return group["rows"]


def groups(asked: Request, **options: Any) -> list[dict[str, Any]]:
    return json.loads(json.dumps(board(Store.open(asked.store), **options)))["groups"]


def test_seeds_of_one_configuration_are_one_row_with_their_mean(asked: Request):
    ids = [run(asked, seed) for seed in (1, 2, 3, 2)]
    other = run(asked, 1, "quantize.matrices.bits=5")
    for name, bpb in zip(ids, (1.3, 1.1, 1.2, 1.1), strict=True):
        change(asked, name, score_sliding={"bpb": bpb}, score_roundtrip={"bpb": 1.5})
    change(asked, other, score_sliding={"bpb": 1.6}, score_roundtrip={"bpb": 1.15})
    first, second = rows(asked)
    assert (first["mean"], first["protocol"], first["overrides"]) == (1.15, "roundtrip", ["quantize.matrices.bits=5"])
    assert (second["seeds"], second["protocol"], second["n"]) == ([1, 2, 3], "sliding", 3)
    assert (second["mean"], second["std"]) == (
        pytest.approx(1.2), pytest.approx(statistics.stdev([1.3, 1.1, 1.2]))
    )  # fmt: skip
    assert second["runs"] == [ids[0], ids[3], ids[2]]


def test_float_scores_are_no_scores_and_rules_broken_put_a_row_last(asked: Request):
    honest = run(asked, 1)
    cheat = run(asked, 1, "quantize.matrices.bits=5")
    change(asked, honest, score_sliding={"bpb": 1.3}, score_roundtrip={"bpb": 1.4}, score_raw={"bpb": 0.9})
    broken = {"bpb": 0.5, "rules_broken": ["C1", "C3"]}
    change(asked, cheat, score_sliding=broken, score_roundtrip=broken)
    first, second = rows(asked)
    assert (first["mean"], first["not_eligible"]) == (1.3, [])
    assert (second["mean"], second["not_eligible"]) == (0.5, ["breaks C1 C3"])
    change(asked, cheat, score_roundtrip={"bpb": 1.2, "rules_broken": []})
    first, _ = rows(asked)
    assert (first["protocol"], first["mean"]) == ("roundtrip", 1.2)


def test_oversize_and_rejected_results_are_marked(asked: Request):
    fat, good, tainted = (run(asked, 1, f"quantize.matrices.bits={bits}") for bits in (5, 6, 7))
    change(asked, fat, bytes={"code": 1, "model": 200, "total": 201, "cap": 100})
    change(asked, good, score_sliding={"bpb": 1.9}, score_roundtrip={"bpb": 1.9})
    step = next(s for s in Store.open(asked.store).read_run(tainted)["steps"] if s["stage"] == "quantize")
    Store.open(asked.store).reject(f"quantize/{step['key']}", "wrong grid")
    found = {row["overrides"][0][-1]: row["not_eligible"] for row in rows(asked)}
    assert found["6"] == []
    assert found["5"] == ["oversize"]
    assert "wrong grid" in found["7"][0]
    assert rows(asked)[0]["overrides"] == ["quantize.matrices.bits=6"]


def test_scores_of_other_documents_parts_or_scales_are_in_groups_of_their_own(asked: Request):
    run(asked, 1)
    run(asked, 1, "corpus.shard_bytes=1048576")  # other bytes of the toy's documents
    run(asked, 1, 'evaluate."*".max_targets=512')
    change(asked, run(asked, 2), scale="one-gpu")
    found = groups(asked)
    assert [(group["scale"], group["validation"].partition(" ")[0]) for group in found] == [
        ("full", "documents"), ("full", "documents"), ("full", "tokens"), ("one-gpu", "documents")
    ]  # fmt: skip
    assert len({group["validation"] for group in found}) == 3
    assert found[2]["validation"].endswith(", first 512")
    assert {len(group["rows"]) for group in found} == {1}
    assert [group["scale"] for group in groups(asked, scale="one-gpu")] == ["one-gpu"]


def test_a_verdict_of_the_audit_counts_by_policy_and_the_worst_seeds_is_the_rows(asked: Request):
    first, second = run(asked, 1), run(asked, 2)
    for name in (first, second):
        change(asked, name, score_sliding={"verdict": {}}, score_roundtrip={"verdict": {}})
    assert rows(asked)[0]["verdict"] == {}
    legal, broken = {"board": "legal", "strict": "legal"}, {"board": "legal", "strict": "not_legal"}
    for name, verdict in ((first, legal), (second, broken)):
        change(asked, name, score_sliding={"verdict": verdict}, score_roundtrip={"verdict": verdict})
    (row,) = rows(asked)
    assert row["verdict"] == {"board": "legal", "strict": "not_legal"}
    assert words(row["verdict"]) == "board: legal, strict: not legal"
    assert row["not_eligible"] == []
    assert rows(asked, policy="strict")[0]["not_eligible"] == ["audit: not legal (strict)"]


def test_runs_without_a_score_are_counted(asked: Request):
    Store.open(asked.store).write_run({"id": "1", "state": "failed", "steps": []})
    assert board(Store.open(asked.store)) == {"policy": "board", "groups": [], "without_score": ["1"]}
