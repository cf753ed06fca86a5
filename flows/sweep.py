"""Sweeps: many points around one recipe, each a set of seeds, all that they share run once, one table at the end."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from artifacts.errors import LeaseCancelled, NotFound, StoreError
from artifacts.store import Store
from configs.load import Loaded, load_recipe
from flows.identity import canonical_json
from flows.launch import Interrupted, StageFailed
from flows.points import Point, Sweep
from flows.prepare import Request
from flows.rundoc import utc_now
from flows.seeds import Conduct, Show, check_seeds, declare, pair, result_of, run_set, scores_of
from flows.sets import Document, SeedSet, headline
from flows.statistics import holm, welch
from flows.validation import PUBLISHED
from stages.contract import StageError


@dataclass(frozen=True)
class Ready:
    """A point whose recipe has been checked at the scale."""

    point: Point
    loaded: Loaded
    request: Request
    protocol: str


def check_points(sweep: Sweep, request: Request, protocol: str = "") -> list[Ready]:
    """Every point's recipe at the scale, before anything runs.

    Raises:
        StageError: a field or value of a point is wrong, in the words that `--set` has for it.
    """
    ready: list[Ready] = []
    for point in sweep.points:
        asked = replace(
            request, recipe=sweep.recipe, overrides=(*point.at_scale(request.scale), *request.overrides), seed=None
        )
        try:
            loaded = load_recipe(asked.recipe, asked.scale, asked.overrides)
            chosen = headline(loaded.recipe, protocol or point.score)
        except StageError as error:
            raise StageError(f"{error}\n  in point {point.name!r} of the sweep; nothing has run") from error
        ready.append(Ready(point, loaded, asked, chosen))
    return ready


class SweepDocument:
    """A sweep's document in the store: declared before the first run, with the set of each point."""

    def __init__(self, store: Store, document: Document) -> None:
        self._store = store
        self.document = document

    @classmethod
    def declare(cls, store: Store, sweep: Sweep, ready: Sequence[Ready], sets: Sequence[SeedSet]) -> SweepDocument:
        """Write it, or find it if the same points and seeds were declared before."""
        members = [each.id for each in sets]
        scale = ready[0].loaded.scale
        identity = canonical_json([[r.point.name for r in ready], members])
        name = f"{sweep.name}-{scale}-sweep-{hashlib.sha256(identity.encode()).hexdigest()[:12]}"
        try:
            known = store.read_set(name)
        except NotFound:
            known = {"declared": utc_now()}
        points = [
            {
                "name": each.point.name,
                "overrides": list(each.request.overrides),
                "protocol": each.protocol,
                "published": each.point.published,
                "note": each.point.note,
                "set": member,
            }
            for each, member in zip(ready, members, strict=True)
        ]
        document = {
            "id": name,
            "kind": "sweep",
            "name": sweep.name,
            "about": sweep.about,
            "recipe": ready[0].loaded.recipe.name,
            "scale": scale,
            "seeds": sets[0].document["seeds"],
            "declared": known["declared"],
            "base": sweep.base or ready[0].point.name,
            "points": points,
            "left_out": [dict(each) for each in sweep.left_out],
            "state": "running",
        }
        store.write_set(document)
        return cls(store, document)

    def close(self, state: str) -> None:
        """Nothing runs any more."""
        self.document["state"] = state
        self._store.write_set(self.document)


def run_sweep(
    sweep: Sweep, ready: Sequence[Ready], seeds: Sequence[int], conduct: Conduct, show: Show
) -> tuple[SweepDocument, list[SeedSet]]:
    """Run every point. One that fails is reported and does not stop the others; Ctrl-C does, and a second call goes on.

    Args:
        sweep: what was asked for.
        ready: its points, checked.
        seeds: of every point; empty: the recipe's own.
        conduct: runs one prepared request.
        show: progress.
    """
    store = Store.open(ready[0].request.store)
    chosen = check_seeds(seeds or (ready[0].loaded.recipe.seed,))
    sets = [declare(each.request, chosen, each.protocol, each.loaded) for each in ready]
    document = SweepDocument.declare(store, sweep, ready, sets)
    show.say(f"sweep {document.document['id']}: {len(ready)} points, {len(chosen)} seeds each, declared")
    try:
        for place, (each, declared) in enumerate(zip(ready, sets, strict=True), 1):
            show.say(f"point {place} of {len(ready)}: {each.point.name}")
            try:
                run_set(declared, each.request, conduct, show)
            except LeaseCancelled:
                raise
            except (StageFailed, StageError, StoreError) as error:
                declared.close("failed")
                show.say(f"point {each.point.name} failed: {str(error).splitlines()[0]}")
    except (Interrupted, KeyboardInterrupt, LeaseCancelled):
        document.close("cancelled")
        raise
    except BaseException:
        document.close("crashed")
        raise
    done = all(declared.document["state"] == "completed" for declared in sets)
    document.close("completed" if done else "incomplete")
    return document, sets


def sweep_result(store: Store, document: Document, sets: Sequence[SeedSet]) -> dict[str, Any]:
    """The sweep as one JSON object: a line per point, compared with the base; p adjusted for the number of points."""
    results = [result_of(store, declared) for declared in sets]
    lines = [_line(point, result) for point, result in zip(document["points"], results, strict=True)]
    places = {line["name"]: place for place, line in enumerate(lines)}
    base = results[places[document["base"]]]
    for line, result in zip(lines, results, strict=True):
        line |= _against(base, document, line, result)
    for line, p in zip(lines, holm([line["p"] for line in lines]), strict=True):
        line["p_holm"] = p
    tested = sum(line["p"] is not None for line in lines)
    notes: list[str] = []
    if tested:
        notes.append(
            f"p is one-sided, that a point is better than {document['base']}; p (Holm) is adjusted for {tested} "
            "comparisons: of many points, some look good by chance"
        )
    elsewhere = [line for line in lines if line["published"] is not None and line["validation"] != PUBLISHED]
    if any(line["n"] for line in elsewhere):
        notes.append("`published` numbers are of the published validation set; the scores beside them are not")
    if len(document["seeds"]) < 2:
        notes.append("one seed: differences are no more than hints; --seeds 1,2,3 tells the noise")
    return {
        "sweep": document["id"],
        "about": document["about"],
        "recipe": document["recipe"],
        "scale": document["scale"],
        "seeds": document["seeds"],
        "state": document["state"],
        "base": document["base"],
        "points": lines,
        "left_out": document["left_out"],
        "notes": notes,
        "report": None,
    }


def _line(point: Mapping[str, Any], result: Mapping[str, Any]) -> dict[str, Any]:
    score = result["scores"].get(point["protocol"])
    failed = [run for run in result["runs"] if run["state"] != "completed"]
    return {
        "name": point["name"],
        "set": result["set"],
        "overrides": point["overrides"],
        "protocol": point["protocol"],
        "state": result["state"],
        "n": score["n"] if score else 0,
        "mean": score["mean"] if score else None,
        "std": score["std"] if score else None,
        "low": score["low"] if score else None,
        "high": score["high"] if score else None,
        "values": score["values"] if score else {},
        "rules_broken": score["rules_broken"] if score else [],
        "bytes": result["bytes"].get("max"),
        "over_cap": bool(result["bytes"]) and result["bytes"]["max"] > result["bytes"]["cap"],
        "validation": score["validation"] if score else "",
        "published": point["published"],
        "note": point["note"],
        # An earlier failure of a seed that has a result now is in the set's own report.
        "error": failed[-1]["error"] if failed and result["state"] != "completed" else "",
    }


def _against(
    base: Mapping[str, Any], document: Document, line: Mapping[str, Any], result: Mapping[str, Any]
) -> dict[str, Any]:
    """Difference and p against the base point: paired, since all points have the same seeds; else Welch."""
    nothing = {"difference": None, "p": None, "method": ""}
    protocol = next(point["protocol"] for point in document["points"] if point["name"] == document["base"])
    old, new = base["scores"].get(protocol), result["scores"].get(line["protocol"])
    before, after = scores_of(old), scores_of(new)
    if not (old and new and before and after) or line["name"] == document["base"]:
        return nothing
    difference = after.bpb.mean - before.bpb.mean
    if (pairs := pair(new["values"], old["values"])) is not None:
        return {"difference": -pairs["improvement"], "p": pairs["p"], "method": "paired"}
    return {"difference": difference, "p": welch(after.bpb, before.bpb).p, "method": "Welch"}
