"""What differs between two runs, sets, recipes or artifacts: fields, scores with their noise, bytes, stages and why."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from artifacts.errors import BadName, NotFound, StoreError
from artifacts.record import Record
from artifacts.store import Store
from configs.complaints import nearest
from configs.load import load_recipe, names
from configs.recipe import Recipe
from flows.leaves import leaves
from flows.rundoc import find_run, label_of
from flows.seeds import find_set, pair, scored_protocols
from flows.sets import SeedSet, configuration_of
from flows.statistics import estimate, welch
from flows.validation import validation
from flows.why import explain, published_source
from stages.contract import StageError

_UNCOMPARED = ("about", "published")  # words about a recipe, not choices


@dataclass(frozen=True)
class Subject:
    """One side of a comparison. A run is a set of one seed; a recipe has neither scores nor steps."""

    kind: str  # "run", "set" or "recipe"
    label: str
    recipe: Mapping[str, Any]  # resolved
    configuration: str | None = None
    scores: Mapping[str, Mapping[str, Mapping[str, Any]]] = field(default_factory=dict)  # protocol -> seed -> score
    bytes: Mapping[str, Mapping[str, int]] = field(default_factory=dict)  # seed -> code, model, total, cap
    steps: Mapping[str, Mapping[str, str]] = field(default_factory=dict)  # seed -> label -> key


def find_subject(store: Store, text: str, scale: str = "full") -> Subject | Record:
    """What a name on the command line means: a run's id, a set's (its beginning will do), a recipe or an artifact.

    Raises:
        StageError: it means nothing.
    """
    try:
        return _run(store.read_run(text))
    except StoreError:  # not a run's id, or no id at all
        pass
    if (document := find_set(store, text)) is not None:
        return _set(store, document)
    if text.endswith(".toml") or text in names("recipe"):
        loaded = load_recipe(text, scale)
        resolved = loaded.recipe.model_dump(mode="json")
        return Subject("recipe", f"{loaded.recipe.name} at {loaded.scale}", resolved)
    try:
        return store.resolve(text)
    except (NotFound, BadName):
        pass
    try:
        return _run(find_run(store, text))
    except StoreError as error:
        known = [*names("recipe"), *(each["id"] for each in store.list_sets())]
        raise StageError(
            f"`compare` takes runs, sets of seeds, recipes or artifacts; {store.url} has none called {text!r}"
            f"{nearest(text, known)}; see `fairway runs ls`, `fairway seeds`, `fairway artifacts ls`"
        ) from error


def _run(document: Mapping[str, Any]) -> Subject:
    seed = str(document["seed"])
    steps = {label_of(step): step["key"] for step in document["steps"] if "key" in step}
    return Subject(
        kind="run",
        label=f"run {document['id']} ({document['recipe']} {document['scale']} seed {seed}, {document['state']})",
        recipe=document["resolved"],
        configuration=configuration_of(document),
        scores={name: {seed: score} for name, score in document.get("scores", {}).items()},
        bytes={seed: document["bytes"]} if document.get("bytes") else {},
        steps={seed: steps},
    )


def _set(store: Store, document: dict[str, Any]) -> Subject:
    if document["kind"] != "seeds":
        raise StageError(
            f"`compare` takes two points of a sweep, not the sweep; {document['id']} is a {document['kind']}; its sets "
            f"are {', '.join(point['set'] for point in document['points'] if point.get('set'))}"
        )
    declared = SeedSet(store, document)
    declared.refresh()
    results = {str(seed): attempt for seed, attempt in declared.results().items()}
    return Subject(
        kind="set",
        label=f"set {document['id']} ({len(results)} of {len(document['seeds'])} seeds)",
        recipe=document["resolved"],
        configuration=document["configuration"],
        scores={
            name: {seed: attempt["scores"][name] for seed, attempt in results.items() if name in attempt["scores"]}
            for name in scored_protocols(document, declared.results())
        },
        bytes={seed: attempt["bytes"] for seed, attempt in results.items() if attempt.get("bytes")},
        steps={seed: attempt["steps"] for seed, attempt in results.items()},
    )


def compare(store: Store, a: Subject | Record, b: Subject | Record) -> dict[str, Any]:
    """The difference as one JSON object. Score differences are b less a: negative is better.

    Raises:
        StageError: an artifact can be compared with an artifact of its stage only.
    """
    if isinstance(a, Record) and isinstance(b, Record):
        return _artifacts(store, a, b)
    if isinstance(a, Record) or isinstance(b, Record):
        raise StageError("an artifact is compared with an artifact; the other one is none; name two of a kind")
    scores, notes = _scores(store, a, b)
    return {
        "a": a.label,
        "b": b.label,
        "fields": fields(a.recipe, b.recipe),
        "scores": scores,
        "bytes": _bytes(a, b),
        "stages": _stages(store, a, b),
        "notes": notes,
    }


def fields(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Every field of two resolved recipes that differs; one that a side does not have is None there."""
    was, now = leaves(a), leaves(b)
    paths = sorted(path for path in {*was, *now} if path.partition(".")[0] not in _UNCOMPARED)
    return [{"path": p, "a": was.get(p), "b": now.get(p)} for p in paths if was.get(p) != now.get(p)]


def _scores(store: Store, a: Subject, b: Subject) -> tuple[list[dict[str, Any]], list[str]]:
    found: list[dict[str, Any]] = []
    notes: list[str] = []
    for name in (name for name in a.scores if name in b.scores):
        before, after = a.scores[name], b.scores[name]
        data = _data(store, a, name), _data(store, b, name)
        if data[0] != data[1]:
            notes.append(f"{name} was scored on other data ({data[0]}; {data[1]}): no difference of scores")
            continue
        old, new = ({seed: score["bpb"] for seed, score in side.items()} for side in (before, after))
        told = estimate(list(old.values())), estimate(list(new.values()))
        difference = told[1].mean - told[0].mean
        found.append(
            {
                "protocol": name,
                "a": _estimate(told[0]),
                "b": _estimate(told[1]),
                "difference": difference,
                "welch": asdict(welch(told[1], told[0])),
                "paired": pair(new, old),
                "noise": _noise(store, (a, b), name, difference) if min(len(old), len(new)) < 2 else None,
            }
        )
    if found and all(score["noise"] is None and score["welch"]["p"] is None for score in found):
        notes.append("nothing tells the noise: run both under the same seeds (`fairway seeds`)")
    return found, notes


def _data(store: Store, side: Subject, protocol: str) -> str:
    """Which data the first seed was scored on; `SeedSet` tells if they changed between seeds."""
    seed, score = next(iter(side.scores[protocol].items()))
    return validation(store, side.steps[seed], side.recipe, protocol, score["bytes"])


def _estimate(told: Any) -> dict[str, Any]:
    return {name: value for name, value in asdict(told).items() if name != "values"}


def _noise(store: Store, sides: tuple[Subject, Subject], protocol: str, difference: float) -> dict[str, Any] | None:
    """How many deviations of seeds alone the difference is, by a set of either side's configuration."""
    for document in store.list_sets():
        if document["kind"] != "seeds" or document["configuration"] not in {side.configuration for side in sides}:
            continue
        attempts = SeedSet(store, document).results().values()
        values = [attempt["scores"][protocol]["bpb"] for attempt in attempts if protocol in attempt["scores"]]
        if len(values) > 1 and (std := estimate(values).std):
            # Two single runs differ by sqrt(2) deviations of one.
            return {
                "set": document["id"],
                "n": len(values),
                "std": std,
                "times": abs(difference) / (std * math.sqrt(2)),
            }
    return None


def _bytes(a: Subject, b: Subject) -> list[dict[str, Any]]:
    """The largest of each kind over the seeds, since the cap is on each seed."""
    if not (a.bytes and b.bytes):
        return []
    found: list[dict[str, Any]] = []
    for kind in ("code", "model", "total"):
        was, now = (max(each[kind] for each in side.bytes.values()) for side in (a, b))
        found.append({"what": kind, "a": was, "b": now, "difference": now - was})
    return found


def _stages(store: Store, a: Subject, b: Subject) -> list[dict[str, Any]]:
    """Every step of one seed, the same on both sides if there is one: equal, or why not."""
    if not (a.steps and b.steps):
        return []
    common = [seed for seed in a.steps if seed in b.steps]
    was = a.steps[common[0] if common else next(iter(a.steps))]
    now = b.steps[common[0] if common else next(iter(b.steps))]
    # Documents sort their keys; a recipe's fields stand in river order.
    order = list(Recipe.model_fields)
    labels = sorted({*was, *now}, key=lambda label: (order.index(label.partition("[")[0]), label))
    return [_stage(store, label, was.get(label), now.get(label)) for label in labels]


def _stage(store: Store, label: str, old: str | None, new: str | None) -> dict[str, Any]:
    line: dict[str, Any] = {"step": label, "a": old, "b": new, "equal": old == new, "why": []}
    if old is None or new is None:
        return {**line, "why": [f"only in {'b' if old is None else 'a'}"]}
    if old != new:
        stage = label.partition("[")[0]
        records = store.get(stage, old), store.get(stage, new)
        gone = [name for name, record in zip("ab", records, strict=True) if record is None]
        line["why"] = [f"the record of {name} is gone" for name in gone] or _why(store, *records)
    return line


def _why(store: Store, old: Record | None, new: Record | None) -> list[str]:
    if old is None or new is None:
        return []
    sources = (lambda: published_source(old, store)), (lambda: published_source(new, store))
    return [str(change) for change in explain(old.components, new.components, *sources)]


def _artifacts(store: Store, a: Record, b: Record) -> dict[str, Any]:
    if a.stage != b.stage:
        raise StageError(f"artifacts of one stage are compared; got {a.label} and {b.label}; name two alike")
    was, now = leaves(a.report), leaves(b.report)
    sizes = {side: sum(file.bytes for file in record.files) for side, record in (("a", a), ("b", b))}
    return {
        "a": f"{a.label} {a.key[:12]}",
        "b": f"{b.label} {b.key[:12]}",
        "equal_bytes": sorted((f.path, f.sha256) for f in a.files) == sorted((f.path, f.sha256) for f in b.files),
        "report": [
            {"path": path, "a": was.get(path), "b": now.get(path)}
            for path in sorted({*was, *now})
            if was.get(path) != now.get(path)
        ],
        "bytes": [{"what": "files", **sizes, "difference": sizes["b"] - sizes["a"]}],
        "stages": [{"step": a.label, "a": a.key, "b": b.key, "equal": a.key == b.key, "why": _why(store, a, b)}],
        "notes": [],
    }
