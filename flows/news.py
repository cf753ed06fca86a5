"""What a run tells the server beyond its own end: an audit that found it not legal, and a new best score.

Both are Prefect events, from which a person makes notifications (`notices.py`). Each is told once, by the run that made
it so: a cached repeat has nothing new to say.

Best is the lowest score that the board's policy calls legal, within the cap, among completed runs of the same recipe
at the same scale, with the same kind of protocol, on the same validation data. An equal score is not new.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from artifacts.store import Store
from flows import verdicts
from flows.headline import archive_scores, says
from flows.session import Outcome
from flows.sets import label_of
from flows.validation import validation

AUDIT_FAILED, NEW_BEST = "fairway.audit.failed", "fairway.score.best"
POLICY = "board"  # whose verdict makes a score legal; `fairway board` ranks by it too

Document = Mapping[str, Any]


@dataclass(frozen=True)
class News:
    """One event: its name, what it is about, and what there is to say."""

    event: str
    resource: Mapping[str, str]
    payload: Mapping[str, Any]


def news(store: Store, document: Document, outcomes: Sequence[Outcome]) -> Iterator[News]:
    """What a completed run has to tell. `document` is its own, with scores, bytes and audit."""
    if any(o.state == "ran" and o.step.stage == "audit" for o in outcomes):
        yield from _failed_audit(document)
    if any(o.state == "ran" for o in outcomes):
        yield from _new_best(store, document)


def _failed_audit(document: Document) -> Iterator[News]:
    audit = document["audit"]
    failed = [policy for policy, outcome in audit["verdict"].items() if outcome == "not_legal"]
    if not failed:
        return
    reasons = dict.fromkeys(
        reason.strip() for score in audit["scores"].values() for policy in failed for reason in score[policy]["because"]
    )
    yield News(
        AUDIT_FAILED,
        {**_resource(document), "prefect.resource.id": f"fairway.run.{document['id']}"},
        {
            **_common(document),
            "says": f"{_about(document)}: not legal by {', '.join(failed)}: {'; '.join(reasons)}",
            "policies": failed,
            "rules": sorted(rule for rule, outcome in audit["rules"].items() if outcome == "fail"),
            "because": list(reasons),
            "verdict": dict(audit["verdict"]),
            "bpb": {name: score["bpb"] for name, score in archive_scores(document).items()},
        },
    )


def _new_best(store: Store, document: Document) -> Iterator[News]:
    legal = {name: score for name, score in archive_scores(document).items() if _is_legal(document, name)}
    if not legal:
        return
    name = min(legal, key=lambda each: (legal[each]["bpb"], each))
    bpb, kind = legal[name]["bpb"], _kind(document, name)
    rivals = list(_rivals(store, document, name))
    if any(rival.bpb <= bpb for rival in rivals if rival.recipe == document["recipe"]):
        return
    before = min((rival.bpb for rival in rivals if rival.recipe == document["recipe"]), default=None)
    gain = "the first legal score" if before is None else f"{bpb - before:+.5f} against {before:.5f}"
    place = f"{document['recipe']}.{document['scale']}.{kind}"
    yield News(
        NEW_BEST,
        {**_resource(document), "prefect.resource.id": f"fairway.best.{place}", "fairway.protocol": kind},
        {
            **_common(document),
            "says": f"{_about(document)}: {says(document)}; new best of {place}: {gain}",
            "bpb": bpb,
            "before": before,
            "best_of_store": all(rival.bpb > bpb for rival in rivals),
            "protocol": name,
            "kind": kind,
            "total_bytes": document["bytes"]["total"],
            "verdict": dict(legal[name]["verdict"]),
        },
    )


@dataclass(frozen=True)
class _Rival:
    recipe: str
    bpb: float


def _rivals(store: Store, document: Document, name: str) -> Iterator[_Rival]:
    """Legal scores of other completed runs that may stand beside the one called `name`; rejected ones may not."""
    data = _data(store, document, name)
    rejected = {record.key for record, _ in store.rejected() if store.get(record.stage, record.key) is None}
    known: dict[tuple[str | None, ...], str] = {}  # a store has many runs of the same data, and each look costs a read
    for run in store.list_runs():
        if run["id"] == document["id"] or run["scale"] != document["scale"] or run["state"] != "completed":
            continue
        keys = _keys(run)
        for each, score in archive_scores(run).items():
            scored = keys.get(f"evaluate[{each}]")
            if scored in rejected or _kind(run, each) != _kind(document, name) or not _is_legal(run, each):
                continue
            place = (keys.get("corpus"), scored, str(score["bytes"]))
            if place not in known:
                known[place] = _data(store, run, each)
            if known[place] == data:
                yield _Rival(run["recipe"], score["bpb"])


def _is_legal(run: Document, name: str) -> bool:
    score, sizes = run["scores"][name], run.get("bytes") or {}
    return (
        score.get("verdict", {}).get(POLICY) == "legal"
        and not score.get("rules_broken")
        and bool(sizes)
        and sizes["total"] <= sizes["cap"]
    )


def _kind(run: Document, name: str) -> str:
    """Names of protocols are the recipe's own; what they do is not."""
    return run.get("resolved", {}).get("evaluate", {}).get(name, {}).get("protocol", name)


def _data(store: Store, run: Document, name: str) -> str:
    return validation(store, _keys(run), run["resolved"], name, run["scores"][name]["bytes"])


def _keys(run: Document) -> dict[str, str]:
    return {label_of(step): step["key"] for step in run["steps"] if "key" in step}


def _about(document: Document) -> str:
    return f"{document['recipe']} {document['scale']} seed {document['seed']}"


def _resource(document: Document) -> dict[str, str]:
    return {
        "prefect.resource.name": _about(document),
        "fairway.recipe": document["recipe"],
        "fairway.scale": document["scale"],
    }


def _common(document: Document) -> dict[str, Any]:
    names = ("recipe", "scale", "seed", "overrides", "bytes")
    audited = verdicts.lines(document["audit"])
    return {"run": document["id"], **{name: document.get(name) for name in names}, "audit": audited}
