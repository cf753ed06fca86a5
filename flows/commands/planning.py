"""`fairway plan` and `fairway why`: what would run, and why. Imports neither torch nor Prefect."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from artifacts.record import Record
from artifacts.store import Store
from configs.load import Loaded, load_recipe
from flows.asked import asked_again
from flows.closure import ROOT
from flows.identity import Identity
from flows.plan import Planned, is_done
from flows.plan import plan as make_plan
from flows.prepare import local_folder, look_outside
from flows.tables import print_json, print_table, seconds_text
from flows.why import Change, explain, published_source
from stages.contract import StageError

WORK_TO_DO = 2


def plan(arguments: argparse.Namespace) -> int:
    """What a run would do. Writes nothing but what it learnt about files, to be faster next time."""
    store = Store.open(arguments.store)
    loaded = load_recipe(arguments.recipe, arguments.scale, arguments.set)
    planned = _plan(store, loaded, arguments.seed)
    expected = [each.expected_s for each in planned if each.state != "cached"]
    expected_s = None if None in expected else sum(each for each in expected if each is not None)
    if arguments.json:
        steps = [
            {
                "stage": each.step.stage,
                "part": each.step.part,
                "state": each.state,
                "reasons": list(each.reasons),
                "key": each.key,
                "expected_s": each.expected_s,
            }
            for each in planned
        ]
        print_json({"recipe": loaded.recipe.name, "scale": loaded.scale, "expected_s": expected_s, "steps": steps})
    else:
        rows = [[each.label, each.state, _expected(each), "; ".join(each.reasons)] for each in planned]
        print_table(["step", "would", "takes", "because"], rows)
        if not is_done(planned) and expected_s is not None:
            sys.stdout.write(f"about {seconds_text(expected_s)}, if every `depends` runs\n")
    return 0 if is_done(planned) else WORK_TO_DO


def _expected(each: Planned) -> str:
    if each.state == "cached":
        return ""
    return "?" if each.expected_s is None else seconds_text(each.expected_s)


def _plan(store: Store, loaded: Loaded, seed: int | None) -> list[Planned]:
    local = local_folder(store)
    identity = Identity(ROOT, local / "cache" / "closures.json")
    outside, _ = look_outside(loaded.recipe, identity, local / "cache")
    planned = make_plan(loaded, loaded.recipe.seed if seed is None else seed, outside, store, identity)
    identity.save()
    return planned


def why(arguments: argparse.Namespace) -> int:
    """What differs between two artifacts of one stage, or between one and what the tree would make now."""
    store = Store.open(arguments.store)
    old = store.resolve(arguments.old)
    changes = _since(store, old) if not arguments.new else _between(store, old, store.resolve(arguments.new))
    if arguments.json:
        rows = [{"component": c.component, "name": c.name, "old": c.old, "new": c.new, "text": str(c)} for c in changes]
        print_json({"stage": old.stage, "part": old.part, "old": old.key, "changes": rows})
        return 0
    for change in changes:
        sys.stdout.write(f"{change}\n")
    if not changes:
        sys.stdout.write("nothing that the key is made of differs\n")
    return 0


def _between(store: Store, old: Record, new: Record) -> list[Change]:
    if old.stage != new.stage:
        raise StageError(f"`why` compares artifacts of one stage; got {old.label} and {new.label}; name two alike")
    sources = (lambda: published_source(old, store)), (lambda: published_source(new, store))
    return explain(old.components, new.components, *sources)


def _since(store: Store, old: Record) -> list[Change]:
    """Against the tree as it is now, with the recipe of the run that made the record."""
    run = maker(store, old)
    with asked_again(run) as again:
        loaded = load_recipe(again["asked"], run["scale"], run["overrides"])
    planned = _plan(store, loaded, run["seed"])
    step = next((each.step for each in planned if (each.step.stage, each.step.part) == (old.stage, old.part)), None)
    if step is None:
        raise StageError(f"{old.label} is no step of {run['recipe']} any more; name a second artifact to compare with")
    identity = Identity(ROOT, local_folder(store) / "cache" / "closures.json")
    new = identity.components(step)
    return explain(old.components, new, lambda: published_source(old, store), lambda: identity.source(old.stage))


def maker(store: Store, record: Record) -> dict[str, Any]:
    """The document of the run that made a record, or of one that used it."""
    made_by = record.provenance.get("run")
    for run in reversed(store.list_runs()):
        if run["id"] == made_by or any(step.get("key") == record.key for step in run["steps"]):
            return run
    raise StageError(
        f"`why OLD` needs the run that made OLD, for its recipe; {record.label} {record.key[:12]} has none left; "
        "name a second artifact to compare with"
    )
