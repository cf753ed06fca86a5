"""Steps, hits and misses, on a toy river without Prefect."""

from __future__ import annotations

import json
import shutil
import threading
from pathlib import Path

import pytest
from toyriver import behave, make_tree
from toyrun import request, run_toy, write_recipe

from artifacts.errors import DamagedArtifact
from artifacts.store import Store
from flows.launch import Interrupted, StageFailed
from flows.session import Event
from stages.contract import StageError


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A toy tree with a recipe beside it."""
    write_recipe(tmp_path)
    return make_tree(tmp_path / "tree")


@pytest.fixture(scope="module")
def finished_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which one run has finished. Tests copy it."""
    folder = tmp_path_factory.mktemp("finished")
    write_recipe(folder)
    run_toy(request(folder, make_tree(folder / "tree")))
    return folder


@pytest.fixture
def finished(finished_once: Path, tmp_path: Path) -> Path:
    """A toy tree beside a store in which its recipe has run."""
    shutil.copytree(finished_once, tmp_path, dirs_exist_ok=True)
    return tmp_path / "tree"


def states(outcomes) -> dict[str, str]:
    return {outcome.step.label: outcome.state for outcome in outcomes}


def ran(outcomes) -> list[str]:
    return [label for label, state in states(outcomes).items() if state == "ran"]


def records(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted((folder / "store" / "records").rglob("*.json"))}


def test_every_step_of_a_first_run_runs(tree: Path, tmp_path: Path):
    first = run_toy(request(tmp_path, tree))
    assert set(states(first).values()) == {"ran"}
    assert len(first) == 16


def test_a_second_run_starts_no_process_and_leaves_the_records_untouched(finished: Path, tmp_path: Path):
    before = records(tmp_path)
    events: list[Event] = []
    second = run_toy(request(tmp_path, finished), events.append)
    assert set(states(second).values()) == {"cached"}
    assert "start" not in {event.kind for event in events}
    assert records(tmp_path) == before
    assert {o.artifact.partition("@")[2] for o in second} == {"1"}


def test_a_changed_field_runs_its_stage_and_what_reads_its_output(finished: Path, tmp_path: Path):
    again = run_toy(request(tmp_path, finished, overrides=("compress.level=3",)))
    assert ran(again) == ["compress", "bundle", "weigh", "evaluate[roundtrip]", "evaluate[sliding]", "audit"]


def test_another_seed_shares_everything_above_training(tree: Path, tmp_path: Path):
    run_toy(request(tmp_path, tree, seed=1))
    again = run_toy(request(tmp_path, tree, seed=2))
    assert {label for label, state in states(again).items() if state == "cached"} == {
        "corpus", "vocabulary", "tokenize[train-00000]", "tokenize[train-00001]", "tokenize[val-00000]", "bundle",
        "overlap",
    }  # fmt: skip


def test_edited_code_runs_its_stage_only_if_its_output_is_the_same(finished: Path, tmp_path: Path):
    behave(finished, "average", "time.sleep(0)")
    assert ran(run_toy(request(tmp_path, finished))) == ["average", "audit"]  # which is told of the new record


def test_until_stops_after_a_stage_and_from_takes_what_is_above(tree: Path, tmp_path: Path):
    assert list(states(run_toy(request(tmp_path, tree, until="average"))))[-1] == "average"
    outcomes = run_toy(request(tmp_path, tree, start="quantize"))
    assert states(outcomes)["average"] == "cached"
    assert states(outcomes)["quantize"] == "ran"


def test_from_refuses_to_run_what_is_above(tree: Path, tmp_path: Path):
    with pytest.raises(StageError, match=r"--from takes every stage above it from the store; corpus has no record"):
        run_toy(request(tmp_path, tree, start="train"))


def test_an_unknown_stage_is_refused_before_anything_runs(tree: Path, tmp_path: Path):
    with pytest.raises(StageError, match=r"--until names a stage; got 'tran'; the stages are corpus, vocabulary"):
        run_toy(request(tmp_path, tree, until="tran"))
    assert not (tmp_path / "store" / "runs").exists()


def test_force_runs_a_stage_again_and_keeps_the_record_that_it_reproduces(finished: Path, tmp_path: Path):
    before = records(tmp_path)
    again = run_toy(request(tmp_path, finished, force=("train",)))
    assert ran(again) == ["train"]
    assert records(tmp_path) == before


def test_a_result_that_is_not_reproduced_is_reported_and_the_first_one_stays(tree: Path, tmp_path: Path):
    behave(
        tree,
        "train",
        '(out / "raw").parent.joinpath("raw_").mkdir()\n(out / "raw_" / "x").write_text(str(time.time_ns()))',
    )
    run_toy(request(tmp_path, tree))
    before = records(tmp_path)
    again = run_toy(request(tmp_path, tree, force=("train",)))
    note = next(o.note for o in again if o.step.label == "train")
    assert "gave other bytes than its record" in note
    assert records(tmp_path) == before


def test_a_failed_stage_leaves_no_record_and_the_run_goes_on_from_there(tree: Path, tmp_path: Path):
    behave(tree, "quantize", 'print("last words")\nraise StageError("weights are finite; got nan; train again")')
    with pytest.raises(StageFailed, match="weights are finite; got nan; train again"):
        run_toy(request(tmp_path, tree))
    store = Store.open(tmp_path / "store")
    assert {stage for stage, _ in store.records()} == {"corpus", "vocabulary", "tokenize", "train", "average"}
    (document,) = store.list_runs()
    assert document["state"] == "failed"
    failed = next(step for step in document["steps"] if step["stage"] == "quantize")
    assert failed["lost_s"] > 0
    assert store.read_object(failed["log"]) == b"last words\n"
    assert not list((tmp_path / "store" / "scratch").iterdir())
    behave(tree, "quantize", "pass")
    assert ran(run_toy(request(tmp_path, tree)))[0] == "quantize"


def test_parts_beside_a_failed_one_are_kept(tree: Path, tmp_path: Path):
    behave(tree, "tokenize", 'if "val" in str(runtime.scratch):\n    raise StageError("no")\ntime.sleep(0.3)')
    with pytest.raises(StageFailed):
        run_toy(request(tmp_path, tree))
    assert len([1 for stage, _ in Store.open(tmp_path / "store").records() if stage == "tokenize"]) == 2


def test_parts_of_a_stage_run_side_by_side(tree: Path, tmp_path: Path):
    flags = tmp_path / "flags"
    flags.mkdir()
    # Each part waits for the other two: in a row, the first would wait for ever.
    behave(
        tree,
        "tokenize",
        f"""
here = {str(flags)!r}
open(os.path.join(here, str(os.getpid())), "w").close()
until = time.monotonic() + 120
while len(os.listdir(here)) < 3:
    if time.monotonic() > until:
        raise StageError("alone")
    time.sleep(0.01)
""",
    )
    assert "tokenize[val-00000]" in ran(run_toy(request(tmp_path, tree, until="tokenize")))


def test_processes_never_take_more_cores_than_the_machine_has(tree: Path, tmp_path: Path):
    flags = tmp_path / "flags"
    flags.mkdir()
    behave(
        tree,
        "tokenize",
        f"""
mine = os.path.join({str(flags)!r}, str(os.getpid()))
open(mine, "w").close()
time.sleep(0.1)
if len(os.listdir({str(flags)!r})) > 1:
    raise StageError("crowded")
os.unlink(mine)
""",
    )
    run_toy(request(tmp_path, tree, until="tokenize", cores=1))


def test_a_run_that_is_cancelled_stops_soon_and_can_go_on(tree: Path, tmp_path: Path):
    behave(tree, "train", "signal.signal(signal.SIGTERM, lambda *a: sys.exit(0))\ntime.sleep(60)")

    def cancel_when_training(event: Event) -> None:
        if (event.kind, event.label) == ("start", "train"):
            threading.Timer(0.5, cancels[0].set).start()

    cancels: list[threading.Event] = []
    with pytest.raises(Interrupted):
        run_toy(request(tmp_path, tree), cancel_when_training, lambda prepared: cancels.append(prepared.session.cancel))
    behave(tree, "train", "pass")
    assert ran(run_toy(request(tmp_path, tree)))[0] == "train"


def test_a_step_that_waits_for_a_core_when_the_run_is_cancelled_never_starts(finished: Path, tmp_path: Path):
    """It would start without the claim on a GPU that it waited for."""
    behave(finished, "evaluate", "time.sleep(2)")
    cancels: list[threading.Event] = []
    started: list[str] = []

    def cancel_at_the_first(event: Event) -> None:
        if event.kind == "start":
            started.append(event.label)
            threading.Timer(0.5, cancels[0].set).start()

    with pytest.raises(Interrupted):
        run_toy(
            request(tmp_path, finished, cores=1),
            cancel_at_the_first,
            lambda prepared: cancels.append(prepared.session.cancel),
        )
    assert len(started) == 1


def test_checkpoints_of_a_stopped_stage_come_back_and_go_when_it_is_done(tree: Path, tmp_path: Path):
    behave(
        tree,
        "train",
        """
saved = runtime.checkpoints / "step.txt"
seen = runtime.checkpoints.parent.parent.parent.parent / "seen.txt"
if saved.exists():
    seen.write_text(saved.read_text())
else:
    saved.write_text("step 7")
    raise StageError("stopped")
""",
    )
    with pytest.raises(StageFailed, match="stopped"):
        run_toy(request(tmp_path, tree))
    assert list((tmp_path / "store" / "attempts").rglob("manifest.json"))
    run_toy(request(tmp_path, tree))
    assert (tmp_path / "store" / "seen.txt").read_text(encoding="utf-8") == "step 7"
    assert not list((tmp_path / "store" / "attempts").rglob("manifest.json"))


def test_a_flipped_byte_in_an_input_is_found_and_its_stage_runs_again(finished: Path, tmp_path: Path):
    first = run_toy(request(tmp_path, finished))
    archive = next(o.record for o in first if o.step.label == "compress").files[0]
    path = tmp_path / "store" / "objects" / archive.sha256[:2] / archive.sha256
    path.chmod(0o644)
    raw = bytearray(path.read_bytes())
    raw[3] ^= 1
    path.write_bytes(raw)
    events: list[Event] = []
    again = run_toy(request(tmp_path, finished, force=("evaluate",)), events.append)
    assert "compress" in ran(again)
    assert any("damaged" in event.text and "compress" in event.text for event in events)
    assert path.read_bytes() != bytes(raw)
    assert Store.open(tmp_path / "store").verify() == []


def test_a_flipped_byte_in_a_record_makes_its_stage_run_again(finished: Path, tmp_path: Path):
    first = run_toy(request(tmp_path, finished))
    key = next(o.record.key for o in first if o.step.label == "average")
    path = tmp_path / "store" / "records" / "average" / f"{key}.json"
    path.chmod(0o644)
    raw = bytearray(path.read_bytes())
    raw[200] ^= 1
    path.write_bytes(raw)
    again = run_toy(request(tmp_path, finished))
    # The audit is told of the new record's seconds, which may be those of the old one to the millisecond.
    assert ran(again) in (["average"], ["average", "audit"])
    # The name's first version still points to the record that was set aside.
    assert {finding.kind for finding in Store.open(tmp_path / "store").verify()} <= {"dangling name"}


def test_damage_that_another_run_has_mended_by_now_ends_nothing(finished: Path, tmp_path: Path, monkeypatch):
    """Both runs find the bytes damaged; the other one has made them again before ours looks."""
    real, failed = Store.fetch, threading.Event()

    def damaged_once(self, files, folder, verify="stamp", link=True, tell=None):
        files = list(files)
        if verify == "full" and not failed.is_set():
            failed.set()
            raise DamagedArtifact(files[0].path, files[0].sha256, "other bytes")
        return real(self, files, folder, verify, link, tell)

    monkeypatch.setattr(Store, "fetch", damaged_once)
    events: list[Event] = []
    again = run_toy(request(tmp_path, finished, force=("evaluate",)), events.append)
    assert set(ran(again)) == {"evaluate[raw]", "evaluate[roundtrip]", "evaluate[sliding]"}
    assert any("mended by another run" in event.text for event in events)


def test_a_source_that_changes_while_corpus_reads_it_leaves_no_result(tree: Path, tmp_path: Path):
    behave(tree, "corpus", f"open({str(tmp_path / 'text.txt')!r}, 'a').write('More.')")
    with pytest.raises(StageError, match=r"what corpus reads has changed since this run began.*run again"):
        run_toy(request(tmp_path, tree))
    assert records(tmp_path) == {}


def test_a_disk_that_damages_without_end_ends_the_run(tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    real = Store.fetch

    def failing(self, files, folder, verify="stamp", link=True, tell=None):
        files = list(files)
        if verify == "full":
            raise DamagedArtifact(files[0].path, files[0].sha256, None)
        return real(self, files, folder, verify, link, tell)

    monkeypatch.setattr(Store, "fetch", failing)
    with pytest.raises(DamagedArtifact):
        run_toy(request(tmp_path, tree))


def test_the_stage_runs_from_the_code_that_was_keyed(tree: Path, tmp_path: Path):
    seen = tmp_path / "seen.txt"
    behave(tree, "compress", f"open({str(seen)!r}, 'w').write(__file__ + '|' + os.getcwd())")
    outcome = run_toy(request(tmp_path, tree, until="compress"))[-1]
    file, folder = seen.read_text(encoding="utf-8").split("|")
    assert file.startswith(folder)
    assert not file.startswith(str(tree))
    # Only the closure is there: what the key does not know cannot be imported.
    source = Store.open(tmp_path / "store").read_object(outcome.record.provenance["source"])
    assert b"stages/compress/stage.py" in source
    assert b"stages/train" not in source


def test_code_that_is_edited_while_a_run_goes_on_waits_for_the_next(tree: Path, tmp_path: Path):
    def edit_when_tokenizing(event: Event) -> None:
        if event.label.startswith("tokenize") and event.kind == "done":
            behave(tree, "train", 'raise StageError("the edit is here")')

    assert "train" in ran(run_toy(request(tmp_path, tree), edit_when_tokenizing))
    with pytest.raises(StageFailed, match="the edit is here"):
        run_toy(request(tmp_path, tree))


def test_code_that_is_edited_while_a_run_begins_is_refused(tree: Path, tmp_path: Path):
    def key_train_and_edit(prepared) -> None:
        prepared.session.identity.closure("train")
        behave(tree, "train", "time.sleep(0.001)")

    with pytest.raises(StageError, match="train was edited while the run began; run it again"):
        run_toy(request(tmp_path, tree), each=key_train_and_edit)


def test_the_document_of_a_run_lists_what_each_step_ended_with(tree: Path, tmp_path: Path):
    outcomes = run_toy(request(tmp_path, tree, overrides=("compress.level=3",)))
    (document,) = Store.open(tmp_path / "store").list_runs()
    assert (document["recipe"], document["scale"], document["overrides"]) == ("toy", "full", ["compress.level=3"])
    assert document["resolved"]["compress"]["level"] == 3
    assert {step["key"] for step in document["steps"]} == {outcome.record.key for outcome in outcomes}


def test_a_killed_run_is_swept_and_called_crashed(finished: Path, tmp_path: Path):
    store = Store.open(tmp_path / "store")
    (document,) = store.list_runs()
    store.write_run({**document, "state": "running"})
    scratch = tmp_path / "store" / "scratch"
    (scratch / document["id"]).mkdir()
    (scratch / f"{document['id']}.lock").touch()
    run_toy(request(tmp_path, finished))
    assert [run["state"] for run in store.list_runs()] == ["crashed", "completed"]
    assert not list(scratch.iterdir())


def test_a_record_says_where_it_came_from(tree: Path, tmp_path: Path):
    outcomes = {o.step.label: o.record for o in run_toy(request(tmp_path, tree))}
    train = outcomes["train"]
    producers = {(p["stage"], p["part"], p["role"]) for p in train.producers()}
    assert producers == {
        ("tokenize", "train-00000", "shards"), ("tokenize", "train-00001", "shards"), ("vocabulary", "", "tokenizer")
    }  # fmt: skip
    assert train.provenance["seconds"] > 0
    assert json.dumps(train.provenance)
    assert train.provenance["packages"]["prefect"]


def test_nothing_of_a_run_stays_but_the_store(finished: Path, tmp_path: Path):
    left = {p.name for p in (tmp_path / "store").iterdir()}
    assert left <= {
        "objects",
        "records",
        "runs",
        "names",
        "logs",
        "cache",
        "scratch",
        "leases",
        "attempts",
        "tmp",
        "store.json",
    }
    assert not list((tmp_path / "store" / "scratch").iterdir())
    shutil.rmtree(tmp_path / "store")
