"""`fairway submit`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flows.tables import print_json, print_table
from stages.contract import StageError

FOUND_FAULTS = 1


def submit(arguments: argparse.Namespace) -> int:
    """Check a records folder."""
    if arguments.check:
        return _check(arguments)
    raise StageError("submit needs --check DIR")


def _check(arguments: argparse.Namespace) -> int:
    from flows.challenge.check import check_folder

    report = check_folder(Path(arguments.check), arguments.against)
    passes = report.strict if arguments.policy == "strict" else report.board
    if arguments.json:
        print_json(report.to_dict())
        return 0 if passes else FOUND_FAULTS
    rows = [[f.level, " ".join(filter(None, (f.rule, f.kind))), f.text] for f in report.findings]
    print_table(["level", "rule", "finding"], rows, report.folder)
    if tested := report.figures.get("against"):
        headings = ["against " + tested["row"], "unit", "improvement", "t", "df", "p"]
        print_table(headings, [_reading(reading) for reading in tested["readings"]])
    verdicts = {True: "passes", False: "does not pass"}
    track = "record" if report.record else "non-record"
    sys.stdout.write(f"as a {track} submission it {verdicts[report.strict]} the strict policy, ")
    sys.stdout.write(
        f"and {verdicts[report.board]} the policy of the board. No score was audited: that takes the archive.\n"
    )
    return 0 if passes else FOUND_FAULTS


def _reading(reading: Mapping[str, Any]) -> list[str]:
    test = reading["welch"]
    numbers = [f"{test['improvement']:+.6f}", *("" if test[n] is None else f"{test[n]:.4g}" for n in ("t", "df", "p"))]
    return [reading["name"], reading["unit"], *numbers]
