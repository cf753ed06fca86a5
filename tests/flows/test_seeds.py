"""Sets of seeds on the toy river: declared first, reported whole, never silently another set."""

from __future__ import annotations

import json
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from toyriver import behave
from toyrun import launch_here
from toyseeds import Quiet, ask, conduct, scored_tree

from artifacts.store import Store
from flows import step as flows_step
from flows.launch import Interrupted, StageFailed
from flows.prepare import Prepared, Request
from flows.references import Reference, board, comparable, reference
from flows.seeds import check_seeds, declare, find_set, result_of, run_set, set_as_reference
from flows.sets import present_state
from flows.statistics import Scores, estimate
from stages.contract import StageError

SEEDS = (42, 1337, 2025)


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One toy tree for all tests here that leave it as it is."""
    return scored_tree(tmp_path_factory.mktemp("toys"))


@pytest.fixture
def asked(tmp_path: Path, tree: Path, monkeypatch: pytest.MonkeyPatch) -> Request:
    """The toy recipe, in a fresh store; stages run in this process."""
    monkeypatch.setattr(flows_step, "launch", launch_here)
    return ask(tmp_path, tree)


def run(asked: Request, seeds: tuple[int, ...] = SEEDS, conduct: Any = conduct, quiet: Quiet | None = None) -> Any:
    declared = declare(asked, seeds)
    run_set(declared, asked, conduct, (quiet or Quiet()).show)
    return declared


def result(asked: Request, declared: Any, row: Reference | None = None) -> dict[str, Any]:
    return json.loads(json.dumps(result_of(Store.open(asked.store), declared, row)))


def breaks_at(seed: int, error: Exception) -> Any:
    def broken(prepared: Prepared) -> Any:
        if prepared.session.seed == seed:
            raise error
        return conduct(prepared)

    return broken


def test_a_set_is_in_the_store_before_its_first_run(asked: Request):
    seen: list[dict[str, Any]] = []

    def look(prepared: Prepared) -> Any:
        seen.append(Store.open(asked.store).list_sets()[0])
        return conduct(prepared)

    declared = declare(asked, SEEDS)
    (before,) = Store.open(asked.store).list_sets()
    assert (before["state"], before["seeds"], before["attempts"]) == ("declared", [42, 1337, 2025], [])
    run_set(declared, asked, look, Quiet().show)
    assert [a["seed"] for a in seen[0]["attempts"]] == [42]
    assert [(a["seed"], a["state"]) for a in seen[2]["attempts"]] == [
        (42, "completed"), (1337, "completed"), (2025, "running")
    ]  # fmt: skip


def test_mean_and_sample_deviation_of_every_protocol_and_shared_stages_run_once(asked: Request):
    quiet = Quiet()
    found = result(asked, run(asked, quiet=quiet))
    values = list(found["scores"]["sliding"]["values"].values())
    assert len(set(values)) == 3
    assert found["scores"]["sliding"]["mean"] == pytest.approx(statistics.mean(values))
    assert found["scores"]["sliding"]["std"] == pytest.approx(statistics.stdev(values))
    assert (found["state"], found["n"], found["protocol"]) == ("completed", 3, "sliding")
    assert set(found["scores"]) == {"raw", "roundtrip", "sliding"}
    assert [quiet.ran(stage) for stage in ("corpus", "vocabulary", "tokenize", "bundle", "train")] == [1, 1, 3, 1, 3]
    assert found["bytes"] == {"max": 30, "mean": 30, "cap": 100, "values": {"42": 30, "1337": 30, "2025": 30}}


def test_a_finished_set_is_found_again_whatever_the_order_of_its_seeds(asked: Request):
    first = result(asked, run(asked))
    quiet = Quiet()
    again = result(asked, run(asked, (2025, 42, 1337), quiet=quiet))
    assert quiet.ran("train") == 0
    assert again["set"] == first["set"]
    assert again["scores"] == first["scores"]
    assert len(again["runs"]) == 3
    assert declare(replace(asked, overrides=("train.muon.lr=0.03",)), SEEDS).id != first["set"]


def test_a_seed_that_fails_is_reported_and_does_not_stop_the_others(asked: Request, tmp_path: Path):
    broken = StageFailed("train", "crash", "loss is nan\nmore", tmp_path / "log")
    quiet = Quiet()
    declared = run(asked, conduct=breaks_at(1337, broken), quiet=quiet)
    found = result(asked, declared)
    assert [(r["seed"], r["state"], r["counts"]) for r in found["runs"]] == [
        (42, "completed", True), (1337, "failed", False), (2025, "completed", True)
    ]  # fmt: skip
    assert found["runs"][1]["error"] == "loss is nan"
    assert (found["state"], found["n"]) == ("incomplete", 2)
    assert "no result yet of seed 1337: the means below are of 2 seeds only" in found["notes"]
    assert "seed 1337 failed: loss is nan" in quiet.lines
    found = result(asked, run(asked))
    assert [(r["seed"], r["state"]) for r in found["runs"]] == [
        (42, "completed"), (1337, "failed"), (1337, "completed"), (2025, "completed")
    ]  # fmt: skip
    assert found["state"] == "completed"


@pytest.mark.parametrize("stop", [Interrupted("stopped"), KeyboardInterrupt()])
def test_a_set_that_was_stopped_says_so_and_goes_on(asked: Request, stop: Any):
    declared = declare(asked, SEEDS)
    with pytest.raises(type(stop)):
        run_set(declared, asked, breaks_at(1337, stop), Quiet().show)
    (document,) = Store.open(asked.store).list_sets()
    assert document["state"] == "cancelled"
    assert [(a["seed"], a["state"]) for a in document["attempts"]] == [(42, "completed"), (1337, "cancelled")]
    quiet = Quiet()
    found = result(asked, run(asked, quiet=quiet))
    assert quiet.ran("train") == 2
    assert "cancelled" in [r["state"] for r in found["runs"]]
    assert (found["state"], found["n"]) == ("completed", 3)


def test_a_run_that_was_killed_shows_as_crashed(asked: Request):
    store = Store.open(asked.store)
    declared = declare(asked, SEEDS)
    declared.begin(42, "20260101-000000-000-dead")
    run_id = "20260101-000000-000-dead"
    store.write_run({"id": run_id, "state": "running", "steps": []})
    assert present_state(store, store.list_sets()[0]) == "running"
    store.write_run({"id": run_id, "state": "crashed", "steps": []})
    assert present_state(store, store.list_sets()[0]) == "crashed"
    found = result(asked, run(asked))
    assert [(r["seed"], r["state"]) for r in found["runs"]][:2] == [(42, "crashed"), (42, "completed")]


def test_a_rejected_result_stays_in_the_report_and_its_seed_runs_again(asked: Request):
    run(asked, SEEDS[:2])
    store = Store.open(asked.store)
    store.reject("toy/full/1337/train", "trained on the wrong shards")
    quiet = Quiet()
    found = result(asked, run(asked, SEEDS[:2], quiet=quiet))
    assert quiet.ran("train") == 1
    assert [(r["seed"], r["state"], r["counts"]) for r in found["runs"]] == [
        (42, "completed", True), (1337, "rejected", False), (1337, "completed", True)
    ]  # fmt: skip
    assert found["runs"][1]["error"].endswith("rejected: trained on the wrong shards")


@pytest.mark.slow
def test_changed_code_replaces_all_seeds_and_no_result_silently(asked: Request, tmp_path: Path):
    asked = replace(asked, source_root=scored_tree(tmp_path))
    first = result(asked, run(asked))
    behave(asked.source_root, "train", "time.sleep(0)")
    path = asked.source_root / "stages" / "train" / "stage.py"
    path.write_text(path.read_text().replace("'train_loss': 3.0", "'train_loss': 4.0").replace("3.0", "4.0"))
    declared = declare(asked, SEEDS)
    with pytest.raises(Interrupted):
        run_set(declared, asked, breaks_at(1337, Interrupted("stopped")), Quiet().show)
    found = result(asked, run(asked))
    old, new = first["scores"]["sliding"]["values"], found["scores"]["sliding"]["values"]
    assert not set(old.values()) & set(new.values())
    completed = [r["bpb"] for r in found["runs"] if r["state"] == "completed"]
    assert set(completed) == {*old.values(), *new.values()}
    assert sum(r["counts"] for r in found["runs"]) == 3


def test_seeds_of_other_code_are_not_mixed_unseen(asked: Request):
    run(asked)
    declared = declare(asked, SEEDS)
    declared.document["attempts"][0]["steps"]["bundle"] = "0" * 64
    notes = result(asked, declared)["notes"]
    assert any("different states of code or data" in note for note in notes)


def test_seeds_outside_the_set_and_seeds_known_before_are_told(asked: Request):
    run(asked, (1, 2))
    found = result(asked, run(asked, (2, 3)))
    assert "seed 2 had been run before the set was declared" in found["notes"]
    assert [other["seed"] for other in found["undeclared"]] == [1]
    assert any("not in the set, though of the same configuration: seed 1 " in note for note in found["notes"])


@pytest.mark.parametrize("seeds", [(), (1, 1), (-1,)])
def test_seeds_are_each_declared_once(seeds: tuple[int, ...]):
    with pytest.raises(StageError, match="whole numbers from 0, each once"):
        check_seeds(seeds)


def test_what_is_wrong_is_refused_before_anything_is_declared(asked: Request):
    with pytest.raises(StageError, match="did you mean 'muon'"):
        declare(replace(asked, overrides=("train.muonn.lr=1",)), SEEDS)
    with pytest.raises(StageError, match="--protocol names one that scores the archive; got 'raw'"):
        declare(asked, SEEDS, "raw")
    assert Store.open(asked.store).list_sets() == []


def row(values: list[float], **more: Any) -> Reference:
    return Reference("row", Scores(estimate(values), 2.0), **{"text_bytes": 3000, "source": "here", **more})


def test_a_set_is_tested_against_a_row_of_the_same_text_only(asked: Request):
    declared = run(asked, SEEDS[:2])
    found = result(asked, declared, row([1.3, 1.31, 1.32]))
    names = [reading["name"] for reading in found["test"]["readings"] if reading["unit"] == "BPB"]
    assert found["test"]["strictest"] == "0.005 nats per byte" == names[-1]
    assert found["test"]["readings"][0]["welch"]["n"] == [2, 3]
    assert any(note.startswith("passes the strictest reading, 0.005 nats per byte: p = 0.0") for note in found["notes"])
    worse = result(asked, declared, row([1.1, 1.11, 1.12]))
    assert sum("does not pass" in note for note in worse["notes"]) == 2
    other = result(asked, declared, row([1.3, 1.31, 1.32], text_bytes=9000))
    assert other["test"] is None
    assert any("scored on other text (9,000 bytes) than this set (documents " in note for note in other["notes"])
    unknown = result(asked, declared, row([1.3, 1.31, 1.32], text_bytes=None))
    assert unknown["test"]
    assert any("does not say which text" in note for note in unknown["notes"])


def test_sets_of_equal_seeds_are_paired(asked: Request):
    first = run(asked, SEEDS[:2])
    store = Store.open(asked.store)
    base = find_set(store, first.id[:-3])
    assert base is not None
    second = run(replace(asked, overrides=("train.muon.lr=0.03",)), SEEDS[:2])
    found = result(asked, second, set_as_reference(store, base))
    new, old = (s.results() for s in (second, first))
    differences = [old[s]["scores"]["sliding"]["bpb"] - new[s]["scores"]["sliding"]["bpb"] for s in SEEDS[:2]]
    assert found["test"]["paired"]["improvement"] == pytest.approx(statistics.mean(differences))
    assert found["test"]["paired"]["n"] == [2, 2]


@pytest.mark.slow
def test_a_set_of_other_documents_is_no_reference_though_its_size_is_equal(asked: Request):
    base = Store.open(asked.store).read_set(run(asked, (1, 2)).id)
    other = run(replace(asked, overrides=("corpus.shard_bytes=1048576",)), (1, 2))
    found = result(asked, other, set_as_reference(Store.open(asked.store), base))
    assert found["scores"]["sliding"]["bytes"] == 3000
    assert found["test"] is None
    assert any("scored on other text (documents " in note for note in found["notes"])


def test_rows_of_the_board_and_files_can_be_references(tmp_path: Path):
    assert {reference(number).scores.bpb.n for number in board()["rows"]} == {3, 7}
    assert reference("#1493").source.endswith("/pull/1493")
    with pytest.raises(StageError, match="did you mean '1493'"):
        reference("1439")
    path = tmp_path / "submission.json"
    results = {"1": {"val_bpb": 1.1, "val_loss": 1.87}, "2": {"val_bpb": 1.2, "val_loss": 2.04}}
    path.write_text(json.dumps({"val_bpb": 1.15, "seed_results": results}))
    found = reference(str(path))
    assert found.scores.bpb.values == (1.1, 1.2)
    assert found.scores.nats_per_bpb == pytest.approx(1.7)
    assert comparable(found, 5, "documents") is None
    path.write_text("{}")
    with pytest.raises(StageError, match="write its per-seed values"):
        reference(str(path))
