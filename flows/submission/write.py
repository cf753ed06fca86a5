"""Writes a records folder, whole or not at all: it is made in a folder of its own, checked, and then renamed."""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from artifacts.store import Store
from flows.challenge.check import check_folder
from flows.challenge.findings import Report
from flows.submission.claims import Author, claims, date, requirements, title
from flows.submission.collect import Submission, collect
from flows.submission.fitness import unfit_for_the_record
from flows.submission.log import write_log
from flows.submission.readme import write_readme
from stages.contract import StageError

_LIMITS = ("B1", "B2", "B3", "E2")  # size, clocks, and the text that was scored


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
        _refuse_faulty(report, by)
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
    faults = unfit_for_the_record(submission)
    if faults and by.track == "record":
        lines = "".join(f"\n  - {fault}" for fault in faults)
        raise StageError(f"this is no submission for the record track:{lines}\nMark it with --track non-record.")


def _refuse_faulty(report: Report, by: Author) -> None:
    """What the check of the finished folder finds. Outside the record track limits may be passed; it says so."""
    allowed = _LIMITS if by.track == "non-record" else ()
    faults = [each for each in report.findings if each.level == "error" and each.rule not in allowed]
    if faults:
        lines = "".join(f"\n  - {each.text}" for each in faults)
        raise StageError(f"a submission passes its own check; this one does not:{lines}\nNothing was written.")


def _slug(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9.]+", "_", text).strip("_.")[:80] or "submission"
