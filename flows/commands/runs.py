"""`fairway runs` and `fairway report`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from artifacts.store import Store
from flows.prepare import local_folder, sweep
from flows.rundoc import gpu_hours, label_of
from flows.tables import print_json, print_table, seconds_text
from stages.contract import StageError


def runs(arguments: argparse.Namespace) -> int:
    """List, show or remove runs."""
    if arguments.action in ("logs", "cancel", "retry"):
        from flows.commands import steering

        return {"logs": steering.logs, "cancel": steering.cancel, "retry": steering.retry}[arguments.action](arguments)
    store = Store.open(arguments.store)
    sweep(store, local_folder(store))  # a killed run is seen as one
    if arguments.action == "rm":
        for run_id in arguments.run:
            store.remove_run(run_id)
        if arguments.json:
            print_json({"removed": arguments.run})
        return 0
    if arguments.action == "show":
        return _show(store.read_run(arguments.run), arguments.json)
    documents = store.list_runs()
    if arguments.json:
        print_json({"runs": [line(document) for document in documents]})
        return 0
    rows = [
        [d["id"], d["recipe"], d["scale"], d["seed"], d["state"], _steps(d), _best(d), " ".join(d["overrides"])]
        for d in documents
    ]
    print_table(["run", "recipe", "scale", "seed", "state", "ran/steps", "best BPB", "overrides"], rows)
    return 0


def line(document: dict[str, Any]) -> dict[str, Any]:
    """A run as programs read it in a list."""
    names = ("id", "recipe", "scale", "seed", "overrides", "state", "started", "finished", "scores", "bytes", "error")
    return {**{name: document[name] for name in names if name in document}, "gpu_hours": gpu_hours(document)}


def _steps(document: dict[str, Any]) -> str:
    ran = sum(1 for step in document["steps"] if step.get("state") == "ran")
    return f"{ran}/{len(document['steps'])}"


def _best(document: dict[str, Any]) -> str:
    """The last score of the ladder: what would be submitted."""
    scores = list(document.get("scores", {}).values())
    return f"{scores[-1]['bpb']:.4f}" if scores else ""


def _show(document: dict[str, Any], as_json: bool) -> int:
    if as_json:
        print_json(document)
        return 0
    for name in ("id", "recipe", "scale", "seed", "state", "started", "finished", "error"):
        if document.get(name) is not None:
            sys.stdout.write(f"{name:<10} {document[name]}\n")
    sys.stdout.write(f"overrides  {' '.join(document['overrides']) or 'none'}\n")
    if hours := gpu_hours(document):
        sys.stdout.write(f"GPU hours  {hours:.3f}\n")
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
        document = store.read_run(arguments.run)
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
