"""`fairway submit`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

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

    report = check_folder(Path(arguments.check))
    passes = report.strict if arguments.policy == "strict" else report.board
    if arguments.json:
        print_json(report.to_dict())
        return 0 if passes else FOUND_FAULTS
    rows = [[f.level, " ".join(filter(None, (f.rule, f.kind))), f.text] for f in report.findings]
    print_table(["level", "rule", "finding"], rows, report.folder)
    verdicts = {True: "passes", False: "does not pass"}
    track = "record" if report.record else "non-record"
    sys.stdout.write(f"as a {track} submission it {verdicts[report.strict]} the strict policy, ")
    sys.stdout.write(
        f"and {verdicts[report.board]} as merged rows did. No score was audited: that takes the archive.\n"
    )
    return 0 if passes else FOUND_FAULTS
