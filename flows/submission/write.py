"""Writes a records folder, whole or not at all: it is made in a folder of its own, checked, and then renamed."""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from artifacts.store import Store
from configs.load import challenge
from flows.challenge.check import check_folder
from flows.challenge.findings import Report
from flows.submission.claims import Author, claims, date, requirements, rules_broken, title
from flows.submission.collect import Submission, collect
from flows.submission.log import write_log
from flows.submission.readme import write_readme
from stages.contract import StageError

_AT_HOME = ("partial", "partial_row_dropped")  # marks of scores that are not of the whole validation set


@dataclass(frozen=True)
class Written:
    """The folder, and what the check of it says."""

    path: Path
    report: Report


def write_submission(
    store: Store, names: Sequence[str], out: Path, by: Author, *, protocol: str = "", archives: bool = False
) -> Written:
    """Make `out/YYYY-MM-DD_Description` from a finished set of seeds or finished runs.

    Raises:
        StageError: what is asked for is unfinished, rejected or not fit for its track, or the folder is there already.
        DamagedArtifact: a byte in the store is not what it was.
    """
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".submit-", dir=out) as scratch:
        submission = collect(store, names, Path(scratch) / "verified", protocol)
        _refuse_unfit(submission, by)
        name = f"{date(submission)}_{_slug(title(submission, by))}"
        if (out / name).exists():
            raise StageError(f"a submission is written once; {out / name} is there already; remove it or choose --name")
        folder = Path(scratch) / name
        folder.mkdir()
        _fill(folder, submission, by, Path(scratch) / "verified", archives)
        report = check_folder(folder)
        _refuse_faulty(report, by, over=submission.total_bytes > submission.cap_bytes)
        folder.rename(out / name)
    return Written(out / name, report)


def _fill(folder: Path, submission: Submission, by: Author, verified: Path, archives: bool) -> None:
    files: dict[int, dict[str, str]] = {}
    for each in submission.seeds:
        files[each.seed] = {"log": f"train_seed{each.seed}.log"}
        (folder / files[each.seed]["log"]).write_text(write_log(submission, each), encoding="utf-8")
        if archives:
            files[each.seed]["archive"] = f"final_model_seed{each.seed}.fwy"
            made = verified / each.run["id"] / "compress" / "archive" / "archive.fwy"
            shutil.copyfile(made, folder / files[each.seed]["archive"])
        if each.verdict is not None:
            files[each.seed]["audit"] = f"audit_seed{each.seed}.json"
            _write_json(folder / files[each.seed]["audit"], each.verdict)
    (folder / "train_gpt.py").write_bytes(submission.code)
    said = claims(submission, by, files)
    _write_json(folder / "submission.json", said)
    (folder / "README.md").write_text(write_readme(submission, by, said, files), encoding="utf-8")
    (folder / "requirements.txt").write_text(requirements(submission), encoding="utf-8")


def _write_json(path: Path, value: Any) -> None:
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)
    path.write_text(text + "\n", encoding="utf-8")


def _refuse_unfit(submission: Submission, by: Author) -> None:
    """What keeps a submission out of its track, all of it."""
    faults = list(_faults(submission)) if by.track == "record" else []
    if faults:
        lines = "".join(f"\n  - {fault}" for fault in faults)
        raise StageError(f"this is no submission for the record track:{lines}\nMark it with --track non-record.")


def _faults(submission: Submission) -> Iterator[str]:
    rules = challenge()
    wanted = rules["submission"]["seeds"]
    if len(submission.seeds) < wanted:
        yield f"a row needs {wanted} seeds; there are {len(submission.seeds)}"
    for each in submission.seeds:
        total, cap = each.report("weigh")["total_bytes"], submission.cap_bytes
        if total > cap:
            yield f"seed {each.seed}: {total:,} bytes of {cap:,}"
        train_s = each.report("train")["seconds"]
        if train_s > rules["train_seconds"] + rules["submission"]["step_overrun_seconds"]:
            yield f"seed {each.seed}: trained for {train_s:.1f} s of {rules['train_seconds']}"
        eval_s = each.records["evaluate", submission.protocol].provenance["seconds"]
        if eval_s > rules["evaluate_seconds"]:
            yield f"seed {each.seed}: evaluated for {eval_s:.1f} s of {rules['evaluate_seconds']}"
        verdict = (each.verdict or {}).get("verdict", {}).get("board")
        if verdict == "not_legal":
            yield f"seed {each.seed}: the audit found it not legal"
    marks = {mark for each in submission.seeds for mark in each.scores[submission.protocol]["marks"]}
    if partial := marks.intersection(_AT_HOME):
        yield f"the score is not of the whole validation set: {', '.join(sorted(partial))}"
    if broken := rules_broken(submission):
        yield f"protocol {submission.protocol} breaks {', '.join(broken)}"
    if submission.recipe.devices.train.kind != rules["device"]["kind"]:
        yield f"the track is for {rules['hardware']}; this was trained on {submission.recipe.devices.train.kind}"


def _refuse_faulty(report: Report, by: Author, over: bool) -> None:
    """What the check of the finished folder finds; a submission outside the track may be over the cap, and says so."""
    allowed = {"B1"} if by.track == "non-record" and over else set()
    faults = [each for each in report.findings if each.level == "error" and each.rule not in allowed]
    if faults:
        lines = "".join(f"\n  - {each.text}" for each in faults)
        raise StageError(f"a submission passes its own check; this one does not:{lines}\nNothing was written.")


def _slug(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9.]+", "_", text).strip("_.")[:80] or "submission"
