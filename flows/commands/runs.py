"""`fairway runs` and `fairway report`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from artifacts.store import Store
from flows.headline import best_score, says
from flows.prepare import local_folder, sweep
from flows.rundoc import find_run, gpu_hours, hours_text, label_of, lost_gpu_hours
from flows.tables import print_json, print_table, seconds_text
from stages.contract import StageError


def runs(arguments: argparse.Namespace) -> int:
    """List, show or remove runs."""
    if arguments.action == "logs":
        from flows.commands.logs import logs

        return logs(arguments)
    if arguments.action in ("cancel", "retry"):
        from flows.commands import steering

        return {"cancel": steering.cancel, "retry": steering.retry}[arguments.action](arguments)
    store = Store.open(arguments.store)
    sweep(store, local_folder(store))  # a killed run is seen as one
    if arguments.action == "rm":
        return _remove(store, [find_run(store, text) for text in arguments.run], arguments.json)
    if arguments.action == "show":
        return _show(find_run(store, arguments.run), arguments.json)
    return _list(store, arguments)


def _remove(store: Store, documents: Sequence[dict[str, Any]], as_json: bool) -> int:
    for document in documents:
        if document["state"] == "running":
            raise StageError(f"a run that goes on is not removed; {document['id']} is running; cancel it first")
    removed = [document["id"] for document in documents]
    for run_id in removed:
        store.remove_run(run_id)
    if as_json:
        print_json({"removed": removed})
    else:
        sys.stdout.write("".join(f"{run_id}: removed; its artifacts stay under their names\n" for run_id in removed))
    return 0


def _list(store: Store, arguments: argparse.Namespace) -> int:
    documents = [
        run
        for run in store.list_runs()
        if arguments.state in (None, run["state"]) and arguments.recipe in ("", run["recipe"])
    ][-arguments.last :]
    if arguments.json:
        print_json({"runs": [line(document) for document in documents]})
        return 0
    if not documents:
        sys.stderr.write(f"fairway: {store.url} has no {'such ' if arguments.state or arguments.recipe else ''}runs\n")
    headings = ["run", "recipe", "scale", "seed", "state", "ran/steps", "took", "best BPB", "GPU hours", "what"]
    rows = [
        [d["id"], d["recipe"], d["scale"], d["seed"], d["state"], _steps(d), _took(d), _best(d), _hours(d), _what(d)]
        for d in documents
    ]
    kept = [i for i in range(len(headings)) if headings[i] != "GPU hours" or any(row[i] for row in rows)]
    print_table([headings[i] for i in kept], [[row[i] for i in kept] for row in rows])
    return 0


def line(document: dict[str, Any]) -> dict[str, Any]:
    """A run as programs read it in a list."""
    names = ("id", "recipe", "scale", "seed", "overrides", "state", "started", "finished", "scores", "bytes", "error")
    told = {name: document[name] for name in names if name in document}
    return {**told, "gpu_hours": gpu_hours(document), "lost_gpu_hours": lost_gpu_hours(document)}


def _steps(document: dict[str, Any]) -> str:
    ran = sum(1 for step in document["steps"] if step.get("state") == "ran")
    return f"{ran}/{len(document['steps'])}"


def _best(document: dict[str, Any]) -> str:
    best = best_score(document)
    return f"{best[1]['bpb']:.4f} {best[0]}" if best is not None else ""


def _took(document: dict[str, Any]) -> str:
    if document.get("finished") is None:
        return ""
    started, finished = (datetime.fromisoformat(document[name]) for name in ("started", "finished"))
    return seconds_text((finished - started).total_seconds())


def _hours(document: dict[str, Any]) -> str:
    return hours_text(document).removeprefix("GPU hours ")


def _what(document: dict[str, Any]) -> str:
    """What was changed, and the rule that broke."""
    error = document.get("error", "").partition("\n")[0]
    return "; ".join(filter(None, [" ".join(document["overrides"]), error]))


def _show(document: dict[str, Any], as_json: bool) -> int:
    if as_json:
        print_json(document)
        return 0
    for name in ("id", "recipe", "scale", "seed", "state", "started", "finished", "error"):
        if document.get(name) is not None:
            sys.stdout.write(f"{name:<10} {document[name]}\n")
    sys.stdout.write(f"overrides  {' '.join(document['overrides']) or 'none'}\n")
    if hours := _hours(document):
        sys.stdout.write(f"GPU hours  {hours}\n")
    if headline := says(document):
        sys.stdout.write(f"result     {headline}\n")
    if document.get("flow_run"):
        sys.stdout.write(f"page       /runs/flow-run/{document['flow_run']} of its Prefect server\n")
    print_table(["step", "state", "artifact", "took", "key", "error"], [_row(step) for step in document["steps"]])
    if scores := document.get("scores"):
        print_table(["score", "BPB"], [[name, f"{score['bpb']:.4f}"] for name, score in scores.items()], right="BPB")
    return 0


def _row(step: dict[str, Any]) -> list[str]:
    took = seconds_text(step["seconds"]) if "seconds" in step else ""
    error = step.get("error", "").partition("\n")[0]
    return [label_of(step), step.get("state", ""), step.get("artifact", ""), took, step.get("key", "")[:12], error]


def report(arguments: argparse.Namespace) -> int:
    """Write the report of a run, by default of the latest completed one."""
    from flows.report import write_report  # draws with matplotlib, half a second to import

    store = Store.open(arguments.store)
    if arguments.run:
        document = find_run(store, arguments.run)
    else:
        completed = [run for run in store.list_runs() if run["state"] == "completed"]
        if not completed:
            raise StageError(f"a report needs a completed run; {store.url} has none; run a recipe first")
        document = completed[-1]
    folder = Path(arguments.out) if arguments.out else local_folder(store) / "reports" / document["id"]
    path = write_report(store, document, folder)
    if arguments.json:
        print_json({"run": document["id"], "report": str(path)})
    else:
        sys.stdout.write(f"{path}\n")
    return 0
