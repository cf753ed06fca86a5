"""`fairway runs logs`: of a stage that has ended from this machine or the store, in a pool also while it runs."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from artifacts.errors import DamagedArtifact, NotFound
from artifacts.store import Store
from flows.commands.serve import use_server
from flows.prepare import local_folder
from flows.ranks import Tail
from flows.rundoc import find_run, label_of
from flows.tables import print_json
from stages.contract import StageError

Document = dict[str, Any]
FOLLOW_EVERY_S = 2.0  # what a stage says is on the server after as long


def logs(arguments: argparse.Namespace) -> int:
    """Print the logs of a run's stages, of all or of one; with `--follow` what they say until the run has ended."""
    if arguments.follow and arguments.json:
        raise StageError("--json prints one object at the end, --follow prints what comes; got both; give one of them")
    store = Store.open(arguments.store)
    document = find_run(store, arguments.run)
    shelf = _Shelf(store, document["id"], arguments.folder, alone=bool(arguments.stage))
    if arguments.follow:
        return _follow(shelf, arguments.stage)
    found = {label: text for label, step in _asked(document, arguments.stage).items() if (text := shelf.log(step))}
    if arguments.stage and not found:
        raise StageError(_no_log(document, arguments.stage))
    if arguments.json:
        print_json({"run": document["id"], "logs": found})
        return 0
    if not found:
        told = f"no stage of {document['id']} printed anything; its steps are in `fairway runs show {document['id']}`"
        sys.stderr.write(f"fairway: {told}\n")
    for label, text in found.items():
        sys.stdout.write(f"== {label}\n{text}" if text.endswith("\n") else f"== {label}\n{text}\n")
    return 0


def _asked(document: Document, stage: str) -> dict[str, dict[str, Any]]:
    """The steps that are meant, by label."""
    steps = {label_of(step): step for step in document["steps"]}
    return {label: step for label, step in steps.items() if stage in ("", step["stage"], label)}


def _no_log(document: Document, stage: str) -> str:
    """Why there is no log of a stage."""
    steps = _asked(document, stage)
    if not steps:
        labels = ", ".join(label_of(step) for step in document["steps"])
        return f"a log is of one of a run's steps; {document['id']} has no {stage!r}; it has {labels}"
    if any(step.get("state") == "running" for step in steps.values()):
        return f"a log is what a stage has said; {stage} of {document['id']} has said nothing yet; try again later"
    return f"a log is kept if the stage said anything; {document['id']} has none of {stage!r}"


@dataclass(frozen=True)
class _Shelf:
    """Where the logs of a run are."""

    store: Store
    run: str
    folder: str  # of `up`, which knows the server
    alone: bool  # one stage is asked for: what stands in its way is an error, and else a note

    def log(self, step: dict[str, Any]) -> str:
        """All that a step has said; "" if nothing, or if it is gone."""
        path = self.path(step)
        if path.is_file():
            return path.read_text(encoding="utf-8", errors="replace")
        if step.get("state") == "running" and step.get("pool"):
            return "".join(f"{line}\n" for line in self.coming(step)())
        try:
            record = self.store.get(step["stage"], step["key"]) if step.get("key") else None
            kept = record.provenance.get("log", "") if record is not None else step.get("log", "")
            return self.store.read_object(kept).decode("utf-8", "replace") if kept else ""
        except (NotFound, DamagedArtifact):
            return ""

    def coming(self, step: dict[str, Any]) -> Callable[[], list[str]]:
        """A running step's lines as they come."""
        if not step.get("pool"):
            return Tail(self.path(step)).lines
        try:
            use_server(self.folder)
        except StageError as error:
            if self.alone:
                raise
            sys.stderr.write(f"fairway: {label_of(step)} runs in the pool {step['pool']}; {error}\n")
            return list
        from flows.said import Said  # whoever asks for what has ended waits for no client

        return Said(step["flow_run"]).lines

    def path(self, step: dict[str, Any]) -> Path:
        """On this machine, if it ran here."""
        return local_folder(self.store) / "logs" / self.run / f"{label_of(step)}.log"


@dataclass
class _Followed:
    """One step that is followed while it runs."""

    attempt: str
    lines: Callable[[], list[str]]
    looks_after_end: int = 0


def _follow(shelf: _Shelf, stage: str) -> int:
    """Print what is said, under the step's name where that changes, until the run has ended."""
    followed: dict[str, _Followed] = {}
    done: set[str] = set()
    last = ""
    while True:
        document = shelf.store.read_run(shelf.run)
        for label, step in _asked(document, stage).items():
            runs, attempt = step.get("state") == "running", step.get("flow_run", "")
            if runs and (label not in followed or followed[label].attempt != attempt):
                followed[label] = _Followed(attempt, shelf.coming(step))
                done.discard(label)
            if label in done:
                continue
            if label in followed:
                lines = followed[label].lines()
                followed[label].looks_after_end += not runs  # its last words may still be on their way: once more
                ended = followed[label].looks_after_end > 1
            else:
                lines, ended = shelf.log(step).splitlines(), True
            if ended:
                done.add(label)
            if lines:
                sys.stdout.write(
                    "".join(([] if label == last else [f"== {label}\n"]) + [f"{each}\n" for each in lines])
                )
                sys.stdout.flush()
                last = label
        if document["state"] != "running" and done >= _asked(document, stage).keys():
            break
        time.sleep(FOLLOW_EVERY_S)
    if stage and not last:
        raise StageError(_no_log(document, stage))
    return 0
