"""`fairway artifacts verify --rebuild STAGE`."""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict
from typing import Any

from artifacts.store import Store
from configs.load import load_recipe
from flows import show
from flows.asked import asked_again
from flows.closure import ROOT
from flows.identity import Identity
from flows.prepare import local_folder, look_outside, scratch_folder, sweep
from flows.rebuild import Rebuilt
from flows.rebuild import rebuild as rebuild_steps
from flows.rundoc import RunDocument, find_run
from flows.session import Session
from flows.snapshot import Packed
from flows.tables import print_json, print_table
from stages.contract import StageError


class _Nowhere:
    """A rebuild is no run: its document is not kept."""

    def write_run(self, run: dict[str, Any]) -> None:
        """Keep nothing."""

    def read_run(self, run_id: str) -> dict[str, Any]:
        """There is none."""
        raise KeyError(run_id)


def rebuild(store: Store, arguments: argparse.Namespace) -> int:
    """Rebuild stages of a run and say which came out byte for byte."""
    with asked_again(find_run(store, arguments.run) if arguments.run else _latest(store)) as document:
        return _rebuild(store, document, arguments)


def _rebuild(store: Store, document: dict[str, Any], arguments: argparse.Namespace) -> int:
    loaded = load_recipe(document["asked"], document["scale"], document["overrides"])
    local = local_folder(store)
    identity = Identity(ROOT, local / "cache" / "closures.json")
    outside, _ = look_outside(loaded.recipe, identity, local / "cache")
    run = RunDocument(_Nowhere(), {})
    viewer = show.PlainRun(sys.stderr)
    sweep(store, local)
    with scratch_folder(local / "scratch", run.id) as scratch, viewer:
        session = Session(
            store=store,
            identity=identity,
            run=run,
            recipe=loaded.recipe.name,
            scale=loaded.scale,
            seed=document["seed"],
            scratch=scratch,
            logs=local / "logs" / f"rebuild-{run.id}",
            tell=viewer,
            packed=Packed(identity.tree.root, outside.source.files),
        )
        found = list(rebuild_steps(session, document, outside, arguments.rebuild))
    return _print(found, arguments)


def _latest(store: Store) -> dict[str, Any]:
    completed = [run for run in store.list_runs() if run["state"] == "completed"]
    if not completed:
        raise StageError(f"--rebuild needs a completed run; {store.url} has none; run a recipe first")
    return completed[-1]


def _print(found: list[Rebuilt], arguments: argparse.Namespace) -> int:
    if arguments.json:
        print_json({"rebuilt": [asdict(each) for each in found]})
    else:
        print_table(["step", "key", "result", "more"], [[r.label, r.key[:12], r.state, r.text] for r in found])
    if not found:
        raise StageError(f"--rebuild names stages of the run; got {', '.join(arguments.rebuild)}, of which it has none")
    return 0 if all(each.state == "same" for each in found) else 1
