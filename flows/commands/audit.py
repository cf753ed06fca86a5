"""`fairway audit`: the verdict on a finished run, with evidence; `--deep` asks more, `--fixtures` audits the audit."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import replace
from typing import Any

from artifacts.record import Record
from artifacts.store import Store
from flows import show, verdicts
from flows.asked import asked_again
from flows.prepare import Request, prepare
from flows.rundoc import find_run
from flows.server import quiet
from flows.tables import print_json, print_table
from stages.contract import StageError


def audit(arguments: argparse.Namespace) -> int:
    """Print which rules the scores of a run break. The audit runs only if the store has none; nothing is rescored."""
    if arguments.fixtures:
        from flows.commands.audit_fixtures import audit_fixtures

        return audit_fixtures(arguments)
    store = Store.open(arguments.store)
    document = find_run(store, arguments.run) if arguments.run else latest(store)
    result = run_again(arguments, document)
    record = audited(store, result)
    table = json.loads(b"".join(store.read_object(file.sha256) for file in record.role("verdict")))
    if arguments.json:
        print_json({"run": document["id"], "audit": result["audit"], "verdict": table})
        return 0
    rows = [[row["score"], row["rule"], row["detector"], row["word"], row["says"]] for row in verdicts.findings(table)]
    print_table(["score", "rule", "detector", "verdict", "finding"], rows, f"run {document['id']}")
    for line in [*verdicts.lines(result["audit"]), f"cost: {verdicts.cost(table)}"]:
        sys.stdout.write(f"{line}\n")
    for name, ruling in table["rulings"].items():
        sys.stdout.write(f"open question {name}: {ruling['question']} ({ruling['source']})\n")
    return 0


def latest(store: Store) -> dict[str, Any]:
    """The document of the latest run that was completed and scored something."""
    completed = [run for run in store.list_runs() if run["state"] == "completed" and run.get("scores")]
    if not completed:
        raise StageError(f"an audit needs a completed run; {store.url} has none; run a recipe first")
    return completed[-1]


def run_again(arguments: argparse.Namespace, document: dict[str, Any]) -> dict[str, Any]:
    """The run's own request from stage `audit` on: all above it is taken from the store, or refused."""
    deep = ["audit.deep=true"] if arguments.deep else []
    request = Request(
        recipe=document["asked"],
        scale=document["scale"],
        seed=document["seed"],
        overrides=(*document["overrides"], *deep),
        store=arguments.store,
        start="audit",
        argv=tuple(sys.argv),
    )
    with (
        asked_again(document) as again,
        prepare(replace(request, recipe=again["asked"]), show.PlainRun(sys.stderr)) as prepared,
    ):
        quiet()
        from flows import pipeline  # imports Prefect, which a wrong run must not wait for

        return pipeline.run(prepared)


def audited(store: Store, result: dict[str, Any]) -> Record:
    """The record of the audit of a result."""
    key = next((stage["key"] for stage in result["stages"] if stage["stage"] == "audit"), "")
    record = store.get("audit", key) if key else None
    if record is None:
        raise StageError("an audit is of scores of the archive; this run has none; add a protocol with of = 'archive'")
    return record
