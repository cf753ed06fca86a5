"""Records folders from finished runs: what they say is what the records hold, and nothing unfit leaves the store."""

from __future__ import annotations

import hashlib
import json
import re
import statistics
from pathlib import Path
from typing import Any

import pytest
from finishedruns import CODE, LN2, LOSSES, TARGETS, TEXT_BYTES, Runs, loaded, score_of

from artifacts.errors import DamagedArtifact
from configs.load import load_recipe
from flows.challenge.check import check_folder
from flows.challenge.log import read_log
from flows.cli import main
from flows.submission.claims import Author
from flows.submission.write import Written, write_submission
from stages.contract import StageError

RECORD = Author(name="An Example", author="A", github_id="a", track="record")


@pytest.fixture
def runs(tmp_path: Path) -> Runs:
    return Runs(tmp_path)


def submit(runs: Runs, *names: str, by: Author = RECORD, **more: Any) -> Written:
    return write_submission(runs.store, names, runs.folder / "records", by, **more)


def refused(runs: Runs, match: str, *names: str, by: Author = RECORD) -> None:
    """The submission is refused, and nothing is left of the attempt."""
    with pytest.raises(StageError, match=re.escape(match)):
        submit(runs, *names, by=by)
    assert list((runs.folder / "records").iterdir()) == []


def test_a_set_becomes_a_folder_that_passes_every_check(runs: Runs) -> None:
    written = submit(runs, runs.run_set(1, 2, 3).id)
    assert written.path.name == "2026-07-14_An_Example"
    assert written.report.findings == ()
    assert check_folder(written.path).strict
    assert sorted(path.name for path in written.path.iterdir()) == [
        "README.md", "requirements.txt", "submission.json", "train_gpt.py",
        "train_seed1.log", "train_seed2.log", "train_seed3.log",
    ]  # fmt: skip
    assert [path.name for path in written.path.parent.iterdir()] == [written.path.name]


def test_the_figures_are_those_of_the_records(runs: Runs) -> None:
    folder = submit(runs, runs.run_set(1, 2, 3).id).path
    said = json.loads((folder / "submission.json").read_text(encoding="utf-8"))
    scores = [score_of(loss)["bpb"] for loss in LOSSES.values()]
    assert said["val_bpb"] == pytest.approx(statistics.fmean(scores), abs=5e-9)
    assert said["val_bpb_std"] == pytest.approx(statistics.stdev(scores), abs=5e-9)
    assert said["val_loss"] == pytest.approx(statistics.fmean(LOSSES.values()), abs=5e-9)
    assert said["bytes_total"] == max(each["artifact_bytes"] for each in said["seed_results"].values())
    assert said["bytes_total"] == len(CODE) + 15_000
    assert said["track"] == "10min_16mb"
    assert said["hardware"] == "8 x NVIDIA H100 80GB HBM3"
    assert said["pytorch_version"] == "2.13.0+cu130"
    assert said["std_ddof"] == 1
    assert {each["run"] for each in said["runs"]} == {each["run"] for each in said["seed_results"].values()}
    assert (folder / "requirements.txt").read_text().startswith("torch==2.13.0\n")


def test_a_log_read_back_says_what_its_run_was(runs: Runs) -> None:
    folder = submit(runs, runs.run_set(1, 2, 3).id).path
    (run,) = read_log("x", (folder / "train_seed2.log").read_text(encoding="utf-8")).runs
    assert (run.seed, run.steps, run.train_s, run.train_shards) == (2, 6992, 598.2, 80)
    assert (run.code_bytes, run.model_bytes, run.total_bytes) == (len(CODE), 15_000, len(CODE) + 15_000)
    assert run.code_sha256 == hashlib.sha256((folder / "train_gpt.py").read_bytes()).hexdigest()
    assert [score.name for score in run.final_scores] == ["roundtrip", "sliding", "ttt"]
    assert run.targets["ttt"] == (TARGETS, TEXT_BYTES)
    assert float(run.final_scores[-1].val_loss) == LOSSES[2]


def test_single_runs_are_as_good_as_a_set_of_them(runs: Runs) -> None:
    names = [runs.add(seed) for seed in (1, 2, 3)]
    assert submit(runs, *names).report.strict


def test_archives_are_shipped_when_asked_for(runs: Runs) -> None:
    folder = submit(runs, runs.run_set(1, 2, 3).id, archives=True).path
    assert (folder / "final_model_seed2.fwy").read_bytes() == b"2" * 15_000
    assert "archive of seed 2" in (folder / "README.md").read_text(encoding="utf-8")
    assert check_folder(folder).strict
    (folder / "final_model_seed2.fwy").write_bytes(b"3" + b"2" * 14_999)
    (fault,) = check_folder(folder).findings
    assert "final_model_seed2.fwy has sha256" in fault.text


def test_runs_that_failed_and_runs_that_were_not_declared_are_told(runs: Runs) -> None:
    declared = runs.declare(1, 2)
    crashed = runs.store.read_run(runs.add(2, state="crashed"))
    declared.begin(2, crashed["id"])
    declared.end(crashed, "crashed", error="out of memory\nmore")
    for seed in (1, 2):
        run = runs.store.read_run(runs.add(seed))
        declared.begin(seed, run["id"])
        declared.end(run, "completed", scores=run["scores"])
    declared.close()
    other = runs.add(3)
    folder = submit(runs, declared.id, by=Author(name="x")).path
    said = json.loads((folder / "submission.json").read_text(encoding="utf-8"))
    assert [each["state"] for each in said["runs"]].count("crashed") == 1
    assert [each["run"] for each in said["undeclared_runs"]] == [other]
    page = (folder / "README.md").read_text(encoding="utf-8")
    assert crashed["id"] in page
    assert other in page


def verdict(**policies: str) -> dict[str, Any]:
    """verdict.json in which the headline and another score are judged differently."""
    because = {name: {"verdict": each, "because": ["B3: no clock"]} for name, each in policies.items()}
    judged = {"verdict": policies, "rules": {"C1": "pass", "B1": "pass"}, "policies": because}
    worst = {**judged, "verdict": dict.fromkeys(policies, "not_legal")}
    return {"verdict": worst["verdict"], "rules": {}, "scores": {"ttt": judged, "sliding": worst}, "run": []}


VERDICT = verdict(strict="unknown", board="legal")


def test_compliance_points_to_evidence_and_claims_nothing_without_it(runs: Runs) -> None:
    bare = json.loads((submit(runs, *[runs.add(s) for s in (1, 2, 3)]).path / "submission.json").read_text())
    assert bare["compliance"]["rules"] == {"verdict": "not audited", "evidence": []}
    audited = submit(runs, *[runs.add(s, verdict=VERDICT) for s in (1, 2, 3)], by=Author(name="audited")).path
    said = json.loads((audited / "submission.json").read_text(encoding="utf-8"))["compliance"]
    assert said["C1"] == {"verdict": "pass", "evidence": [f"audit_seed{s}.json" for s in (1, 2, 3)]}
    assert said["policy board"]["verdict"] == "legal"  # of the headline; another score of the run is not
    assert json.loads((audited / "audit_seed1.json").read_text(encoding="utf-8")) == VERDICT
    assert "B3: no clock" in (audited / "README.md").read_text(encoding="utf-8")


def test_what_is_not_finished_is_refused(runs: Runs) -> None:
    declared = runs.declare(1, 2, 3)
    run = runs.store.read_run(runs.add(1))
    declared.begin(1, run["id"])
    declared.end(run, "completed", scores=run["scores"])
    declared.close()
    refused(runs, "no result yet of seed 2, 3", declared.id)
    refused(runs, "is crashed", runs.add(2, state="crashed"))
    refused(runs, "neither called 'nobody'", "nobody")


def test_what_was_rejected_is_refused(runs: Runs) -> None:
    names = [runs.add(seed) for seed in (1, 2, 3)]
    key = next(step["key"] for step in runs.store.read_run(names[1])["steps"] if step["stage"] == "compress")
    runs.store.reject(f"compress/{key}", "made on a broken GPU")
    refused(runs, "has none of compress any more", *names)


def test_runs_of_several_configurations_or_codes_are_no_submission(runs: Runs) -> None:
    other = load_recipe("pr714", overrides=["train.muon.lr=0.5"])
    refused(runs, "of one configuration", runs.add(1), runs.add(2, recipe=other))
    refused(runs, "each seed once", runs.add(1), runs.add(1))
    refused(runs, "different states of the code", runs.add(1), runs.add(2, code="print('another')\n"))
    assert other.recipe != loaded().recipe


UNFIT: dict[str, tuple[dict[str, Any], str]] = {
    "over the cap": ({"counted_bytes": 16_000_000}, "16,000,018 bytes of 16,000,000"),
    "over its time": ({"train": {"seconds": 602.0}}, "trained for 602.0 s of 600"),
    "of a part": ({"score": {"marks": ["partial"]}}, "a part of the validation set"),
    "against a rule": ({"score": {"rules_broken": [{"rule": "C3", "why": ""}]}}, "breaks C3"),
    "on another text": ({}, "not the published validation set"),
    "not legal": ({"verdict": verdict(strict="not_legal", board="not_legal")}, "found it not legal (B3: no clock)"),
}


def another_text(seed: int) -> dict[str, Any]:
    nats = 1.2 + seed / 100
    return {"score": {"bytes": 3000, "tokens": 1000, "bpb": nats / LN2 / 3, "nats_per_token": nats}}


@pytest.mark.parametrize("name", UNFIT)
def test_what_is_unfit_for_the_record_is_refused_there_and_says_so_elsewhere(name: str, runs: Runs) -> None:
    changes, reason = UNFIT[name]
    names = [runs.add(seed, **(another_text(seed) if name == "on another text" else changes)) for seed in (1, 2, 3)]
    refused(runs, reason, *names)
    folder = submit(runs, *names, by=Author(name="y")).path
    said = json.loads((folder / "submission.json").read_text(encoding="utf-8"))
    assert reason in said["non_record_reason"]
    assert said["track"] == "non_record_16mb"
    assert reason in (folder / "README.md").read_text(encoding="utf-8")


def test_fewer_seeds_than_a_row_needs_are_no_record(runs: Runs) -> None:
    refused(runs, "a row needs 3 seeds; there are 2", runs.add(1), runs.add(2))


def test_a_damaged_archive_leaves_nothing_behind(runs: Runs) -> None:
    names = [runs.add(seed) for seed in (1, 2, 3)]
    sha256 = hashlib.sha256(b"2" * 15_000).hexdigest()
    path = runs.folder / "store" / "objects" / sha256[:2] / sha256
    path.chmod(0o644)
    path.write_bytes(b"2" * 14_999 + b"3")
    with pytest.raises(DamagedArtifact):
        submit(runs, *names)
    assert list((runs.folder / "records").iterdir()) == []


def test_a_submission_is_written_once(runs: Runs) -> None:
    names = [runs.add(seed) for seed in (1, 2, 3)]
    first = submit(runs, *names).path
    before = {path.name: path.read_bytes() for path in first.iterdir()}
    with pytest.raises(StageError, match="written once"):
        submit(runs, *names)
    assert {path.name: path.read_bytes() for path in first.iterdir()} == before


def test_the_command_line_prints_the_folder_and_needs_a_place_for_it(
    runs: Runs, capsys: pytest.CaptureFixture[str]
) -> None:
    names = [runs.add(seed) for seed in (1, 2, 3)]
    store = ["--store", str(runs.folder / "store")]
    assert main(["submit", *names, *store]) == 3
    assert main(["submit", *store]) == 3
    assert "give --out DIR" in capsys.readouterr().err
    assert main(["submit", *names, "--out", str(runs.folder / "records"), "--json", *store]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert Path(printed["written"], "submission.json").is_file()
    assert main(["submit", "--check", printed["written"], "--json"]) == 0
    assert main(["submit", "--check", str(runs.folder), "--json"]) == 1
