"""`fairway submit`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from artifacts.store import Store
from flows.tables import print_json, print_table
from stages.contract import StageError

FOUND_FAULTS = 1


def submit(arguments: argparse.Namespace) -> int:
    """Write a records folder from finished runs, or check one."""
    if bool(arguments.check) == bool(arguments.what):
        raise StageError(
            "submit writes a records folder from a set of seeds or from runs, or checks one; got "
            f"{'both' if arguments.what else 'neither'}; give SET|RUN... --out DIR, or --check DIR"
        )
    return _check(arguments) if arguments.check else _write(arguments)


def _write(arguments: argparse.Namespace) -> int:
    from flows.submission.claims import Author
    from flows.submission.write import write_submission

    if not arguments.out:
        raise StageError("submit writes into a folder; got none; give --out DIR")
    by = Author(arguments.name, arguments.author, arguments.github_id, arguments.track)
    written = write_submission(
        Store.open(arguments.store),
        arguments.what,
        Path(arguments.out),
        by,
        protocol=arguments.protocol,
        archives=arguments.archives,
    )
    if arguments.json:
        print_json({"written": str(written.path), "check": written.report.to_dict()})
        return 0
    for finding in written.report.findings:
        sys.stderr.write(f"{finding.level}: {finding.text}\n")
    sys.stdout.write(f"{written.path}\n")
    return 0


def _check(arguments: argparse.Namespace) -> int:
    from flows.challenge.check import check_folder

    report = check_folder(Path(arguments.check), arguments.against)
    passes = report.strict if arguments.policy == "strict" else report.board
    if arguments.json:
        print_json(report.to_dict())
        return 0 if passes else FOUND_FAULTS
    rows = [[f.level, " ".join(filter(None, (f.rule, f.kind))), f.text] for f in report.findings]
    print_table(["level", "rule", "finding"], rows, report.folder)
    sizes = [
        [row["log"], row["seed"], *(_bytes(row[way]) for way in ("logged", "on_disk", "every_source"))]
        for row in report.figures["sizes"]
    ]
    if sizes:
        ways = ["as logged", "as it lies here", "with every source"]
        print_table(
            ["log", "seed", *ways], sizes, f"code and model, of {report.figures['cap_bytes']:,} bytes", " ".join(ways)
        )
    if found := report.figures["statistics"]:
        spread = f", sample deviation {found['std_ddof1']:.8f} (ddof 1)" if "std_ddof1" in found else ""
        sys.stdout.write(f"{found['mean_bpb']:.8f} BPB, mean over {found['n']} seed(s){spread}\n")
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


def _bytes(count: int | None) -> str:
    return "" if count is None else f"{count:,}"


def _reading(reading: Mapping[str, Any]) -> list[str]:
    test = reading["welch"]
    numbers = [f"{test['improvement']:+.6f}", *("" if test[n] is None else f"{test[n]:.4g}" for n in ("t", "df", "p"))]
    return [reading["name"], reading["unit"], *numbers]
