"""Sweeps: many points around one recipe, each a set of seeds, all that they share run once, one table at the end.

A point is a list of overrides. Points come from `--grid path=v1,v2` (every combination) or from a file:

    recipe = "pr398"                    # what the points start from
    set = ["train.steps=100"]           # overrides of every point
    base = "first"                      # the point that others are compared with (default: the first)

    [grid]                              # every combination
    "quantize.matrices.bits" = [5, 6]

    [[point]]                           # or points by name
    name = "first"
    set = ["average.kind=raw"]
    at = { smoke = ["train.batch_tokens=384"] }   # further overrides at one scale
    score = "sliding"                   # whose score counts here (default: the sweep's)
    published = 1.1242                  # somebody's number for it
    note = "what the reader should know"

    [[left_out]]                        # what the table it follows has and this sweep does not
    name = "..."
    published = 1.1250
    why = "..."
"""

from __future__ import annotations

import hashlib
import itertools
import json
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from artifacts.errors import LeaseCancelled, NotFound, StoreError
from artifacts.store import Store
from configs.complaints import nearest
from configs.load import Loaded, load_recipe, parse_override
from flows.identity import canonical_json
from flows.launch import Interrupted, StageFailed
from flows.prepare import Request
from flows.rundoc import utc_now
from flows.seeds import Conduct, Show, check_seeds, declare, pair, result_of, run_set, scores_of
from flows.sets import Document, SeedSet, headline
from flows.statistics import holm, welch
from flows.validation import PUBLISHED
from stages.contract import StageError

_POINT_FIELDS = {"name": str, "set": list, "at": dict, "score": str, "published": float, "note": str}
_FIELDS = {
    "about": str, "recipe": str, "set": list, "base": str, "score": str, "seeds": list, "grid": dict, "point": list,
    "left_out": list,
}  # fmt: skip
MOST_POINTS = 1000


@dataclass(frozen=True, kw_only=True)
class Point:
    """One point, before a scale is chosen."""

    name: str
    overrides: tuple[str, ...]
    at: Mapping[str, Sequence[str]]  # scale -> further overrides
    score: str = ""
    published: float | None = None
    note: str = ""

    def at_scale(self, scale: str) -> tuple[str, ...]:
        """All overrides at a scale."""
        return (*self.overrides, *self.at.get(Path(scale).stem, ()))


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """What is to be run."""

    name: str
    recipe: str
    points: tuple[Point, ...]
    about: str = ""
    base: str = ""
    seeds: tuple[int, ...] = ()
    left_out: tuple[Mapping[str, Any], ...] = ()


@dataclass(frozen=True)
class Ready:
    """A point whose recipe has been checked at the scale."""

    point: Point
    loaded: Loaded
    request: Request
    protocol: str


def grid_points(axes: Sequence[tuple[str, Sequence[Any]]], common: Sequence[str] = ()) -> tuple[Point, ...]:
    """Every combination of the values of every path, the last path fastest."""
    count = 1
    for _, values in axes:
        count *= len(values)
    if count > MOST_POINTS:
        raise StageError(f"a sweep has at most {MOST_POINTS} points; this grid has {count}; leave out values or axes")
    points: list[Point] = []
    for chosen in itertools.product(*(values for _, values in axes)):
        told = tuple(f"{path}={_toml(value)}" for (path, _), value in zip(axes, chosen, strict=True))
        points.append(Point(name=" ".join(_short(each) for each in told), overrides=(*common, *told), at={}))
    if len({point.name for point in points}) < len(points):
        points = [replace(point, name=" ".join(point.overrides[len(common) :])) for point in points]
    return tuple(points)


def parse_grid(text: str) -> tuple[str, list[Any]]:
    """`quantize.matrices.bits=5,6`: a path and its values, in TOML's syntax, where bare words are text.

    Raises:
        StageError: there is no path or no value.
    """
    path, equals, values = text.partition("=")
    parse_override(f"{path}=0")  # the same complaint as of --set
    if not equals or not values.strip():
        raise StageError(
            f"--grid takes path=value,value; got {text!r}; write for instance --grid train.muon.lr=0.02,0.03"
        )
    try:
        return path.strip(), tomllib.loads(f"values = [{values}]")["values"]
    except tomllib.TOMLDecodeError:
        return path.strip(), [word.strip() for word in values.split(",")]


def read_sweep(path: Path) -> Sweep:
    """The sweep of a file.

    Raises:
        StageError: it is not TOML, or has a field that a sweep does not know.
    """
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise StageError(f"a sweep is a readable TOML file; {path} is not: {error}; mend it") from error
    _check(table, _FIELDS, str(path))
    if "recipe" not in table or not (table.get("grid") or table.get("point")):
        raise StageError(f"a sweep has a recipe and [grid] or [[point]]; {path} does not; see docs/statistics.md")
    common = tuple(table.get("set", ()))
    points = list(grid_points(list(table["grid"].items()), common)) if table.get("grid") else []
    for place, given in enumerate(table.get("point", ()), 1):
        _check(given, _POINT_FIELDS, f"point {place} of {path}")
        points.append(
            Point(
                name=given.get("name", f"point {place}"),
                overrides=(*common, *given.get("set", ())),
                at=given.get("at", {}),
                score=given.get("score", table.get("score", "")),
                published=given.get("published"),
                note=given.get("note", ""),
            )
        )
    names = [point.name for point in points]
    if len(set(names)) < len(names):
        raise StageError(
            f"points have names of their own; {path} has {max(names, key=names.count)!r} twice; rename one"
        )
    base = table.get("base", "")
    if base and base not in names:
        raise StageError(
            f"base names a point; {path} has {base!r}{nearest(base, names)}; use one of {', '.join(names)}"
        )
    recipe = table["recipe"]
    return Sweep(
        name=path.stem,
        recipe=str((path.parent / recipe).resolve()) if recipe.endswith(".toml") else recipe,
        points=tuple(points),
        about=table.get("about", ""),
        base=base,
        seeds=tuple(table.get("seeds", ())),
        left_out=tuple(table.get("left_out", ())),
    )


def is_sweep(path: Path) -> bool:
    """Whether a .toml file is a sweep rather than a recipe: it says which recipe it is about."""
    try:
        return "recipe" in tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError):
        return False


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


def _toml(value: Any) -> str:
    """A value as `--set` takes it. JSON is TOML but for tables and null, which no field has alone."""
    return value if isinstance(value, str) else json.dumps(value)


def _short(override: str) -> str:
    """`bits=5` of `quantize.matrices.bits=5`."""
    path, _, value = override.partition("=")
    return f"{path.rpartition('.')[2]}={value}"


def _check(table: object, known: Mapping[str, type], where: str) -> None:
    if not isinstance(table, dict):
        raise StageError(f"a sweep is made of tables; {where} is {type(table).__name__}; see docs/statistics.md")
    for name, value in table.items():
        if name not in known:
            raise StageError(f"{name} is no field of {where}{nearest(name, known)}; it has {', '.join(known)}")
        wanted = known[name]
        if not isinstance(value, (int, float) if wanted is float else wanted):
            raise StageError(f"{name} of {where} is a {wanted.__name__}; got {value!r}; mend it")
    for name in ("set", *(("at",) if "at" in table else ())):
        lists = table.get("at", {}).values() if name == "at" else [table.get("set", [])]
        if not all(isinstance(each, list) and all(isinstance(text, str) for text in each) for each in lists):
            raise StageError(f'{name} of {where} lists overrides as text; got {table[name]!r}; write ["path=value"]')
