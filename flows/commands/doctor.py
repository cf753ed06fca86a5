"""`fairway doctor`."""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict

from flows.doctor import Finding, examine
from flows.tables import print_json, print_table


def _of_pool(arguments: argparse.Namespace) -> list[Finding]:
    from flows.commands.serve import use_server

    use_server(arguments.folder)
    from flows.preflight import preflight  # imports Prefect

    return preflight(arguments.pool)


def doctor(arguments: argparse.Namespace) -> int:
    """Check this installation; exit code 1 if something would keep a run from working."""
    findings = _of_pool(arguments) if arguments.pool else examine(arguments.store)
    failed = any(finding.state == "fail" for finding in findings)
    if arguments.json:
        print_json({"ok": not failed, "findings": [asdict(finding) for finding in findings]})
        return int(failed)
    print_table(
        ["check", "state", "what is there", "what to do"], [[f.name, f.state, f.text, f.advice] for f in findings]
    )
    sys.stdout.write("something here would keep a run from working\n" if failed else "a run would work here\n")
    return int(failed)
