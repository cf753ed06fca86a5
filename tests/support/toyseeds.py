"""Sets of toy runs without Prefect: scores depend on configuration and seed, and every stage runs in this process."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from toyriver import STAGES, behave, make_tree
from toyrun import request, write_recipe

from flows.drive import drive
from flows.identity import Identity
from flows.launch import Interrupted
from flows.prepare import Prepared, Request
from flows.seeds import Show
from flows.session import Event
from flows.source import bundle_source
from flows.step import hit_or_run
from flows.summary import summarise

SCORE = "int(digest.hexdigest()[:6], 16) / 2**24"


def scored_tree(folder: Path) -> Path:
    """The toy tree with scores by seed, and its closures beside it: they take longer to compute than a run."""
    tree = make_tree(folder / "tree")
    score_by_seed(tree)
    identity = Identity(tree, folder / "closures.json")
    for stage in STAGES:
        identity.closure(stage)
    bundle_source(tree, identity.tree)
    identity.save()
    return tree


def ask(folder: Path, tree: Path) -> Request:
    """The toy recipe in a fresh store below `folder`."""
    write_recipe(folder)
    (folder / "store" / "cache").mkdir(parents=True)
    shutil.copy(tree.parent / "closures.json", folder / "store" / "cache")
    return request(folder, tree)


def score_by_seed(tree: Path) -> None:
    """Let the toy `evaluate` give each configuration and seed a score of its own, between 1.20 and 1.21 BPB."""
    behave(tree, "evaluate", "pass")
    path = tree / "stages" / "evaluate" / "stage.py"
    text = path.read_text(encoding="utf-8")
    head, _, _ = text.partition("    return {'bpb'")
    tail = text[text.index("\n\ndef act(") :]
    report = '{"bpb": bpb, "nats_per_token": 2 * bpb, "tokens": 1000, "bytes": 3000}'
    told = f"    bpb = 1.2 + {SCORE} / 100\n    return {report}\n"
    path.write_text(head + told + tail, encoding="utf-8")


def conduct(prepared: Prepared) -> Mapping[str, Any]:
    """What the Prefect flow does, with a thread pool in its place."""
    session = prepared.session
    with ThreadPoolExecutor(4) as pool:
        try:
            outcomes = drive(
                prepared.loaded.recipe, prepared.outside, session, lambda step: pool.submit(hit_or_run, step, session)
            )
        except Interrupted:
            session.run.finish("cancelled")
            raise
        except Exception as error:
            session.run.finish("failed", error=str(error))
            raise
    result = summarise(session, outcomes)
    session.run.finish("completed", scores=result["scores"], bytes=result["bytes"])
    return result


class Quiet:
    """Shows nothing and remembers."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.lines: list[str] = []

    @property
    def show(self) -> Show:
        """For `run_set`."""
        return Show(lambda: self, self.lines.append)

    def ran(self, stage: str) -> int:
        """How often a stage really ran."""
        return sum(e.kind == "start" and e.label.partition("[")[0] == stage for e in self.events)

    def __call__(self, event: Event) -> None:
        self.events.append(event)

    def __enter__(self) -> Quiet:
        return self

    def __exit__(self, *ended: object) -> None:
        pass
