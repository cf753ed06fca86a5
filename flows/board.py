"""The leaderboard: every configuration in the store with its seeds, by its best legal score.

Scores stand side by side only if they were made at one scale and on the same validation data (`validation.py`).
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from artifacts.store import Store
from flows.rundoc import label_of
from flows.sets import configuration_of
from flows.statistics import estimate
from flows.validation import validation


@dataclass(frozen=True)
class _Scored:
    """One score of one run."""

    run: Mapping[str, Any]
    protocol: str
    score: Mapping[str, Any]
    verdict: Mapping[str, str]
    validation: str  # which data
    rejected: str  # why, if its result was rejected


def board(store: Store, policy: str = "board", scale: str = "") -> dict[str, Any]:
    """Groups of rows as one JSON object, best first within each.

    Args:
        store: whose runs.
        policy: of the audit; a score that it found not legal is not one, whatever the others say.
        scale: only this one; empty: all.
    """
    runs = [run for run in store.list_runs() if not scale or run.get("scale") == scale]
    look = _Look(store)
    points = {
        tuple(point["overrides"]): f"{each['name']}: {point['name']}"
        for each in store.list_sets()
        if each["kind"] == "sweep"
        for point in each["points"]
    }
    rows: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    for members in _configurations(runs).values():
        if (row := _row(members, look, policy)) is not None:
            row["point"] = points.get(tuple(row["overrides"]), "")
            rows[row["scale"], row["validation"]].append(row)
    groups = [
        {"scale": key[0], "validation": key[1], "bytes": found[0]["text_bytes"], "rows": sorted(found, key=_rank)}
        for key, found in sorted(rows.items())
    ]
    unscored = [run["id"] for run in runs if not run.get("scores")]
    return {"policy": policy, "groups": groups, "without_score": unscored}


def _rank(row: Mapping[str, Any]) -> tuple[bool, float]:
    """What may not be submitted stands below what may, whatever its number."""
    return (bool(row["not_eligible"]), row["mean"])


def _configurations(runs: Sequence[Mapping[str, Any]]) -> dict[tuple[str, str], dict[int, Mapping[str, Any]]]:
    """(configuration, scale) -> seed -> its latest run that has scores."""
    found: dict[tuple[str, str], dict[int, Mapping[str, Any]]] = defaultdict(dict)
    digests: dict[str, str | None] = {}  # runs of one recipe are many, and checking one takes milliseconds
    for run in runs:
        if not run.get("scores"):
            continue
        text = json.dumps(run.get("resolved"), sort_keys=True)
        if text not in digests:
            digests[text] = configuration_of(run)
        # A recipe that this Fairway cannot read any more is a configuration of its own.
        found[digests[text] or text, run["scale"]][run["seed"]] = run
    return found


def _row(members: Mapping[int, Mapping[str, Any]], look: _Look, policy: str) -> dict[str, Any] | None:
    """The line of one configuration: its best protocol that breaks no rule, or its best one and the rules it breaks."""
    protocols = dict.fromkeys(name for run in members.values() for name in _archive_scores(run))
    candidates = [
        (name, [look.scored(run, name) for run in members.values() if name in run["scores"]]) for name in protocols
    ]
    if not candidates:
        return None
    lines = [_line(name, scored, policy) for name, scored in candidates]
    return min(lines, key=lambda line: (bool(line["illegal"]), line["mean"]))


def _archive_scores(run: Mapping[str, Any]) -> Iterator[str]:
    """Protocols that scored the archive; scores of float weights are diagnostics."""
    asked = run.get("resolved", {}).get("evaluate", {})
    return (name for name in run["scores"] if asked.get(name, {}).get("of", "archive") == "archive")


def _line(protocol: str, scored: Sequence[_Scored], policy: str) -> dict[str, Any]:
    # A configuration whose data changed in between is told by its latest runs alone.
    scored = [each for each in scored if each.validation == scored[-1].validation]
    sound = [each for each in scored if not each.rejected] or list(scored)
    told = estimate([each.score["bpb"] for each in sound])
    latest = sound[-1]
    sizes = [each.run["bytes"] for each in sound if each.run.get("bytes")]
    broken = sorted({rule for each in sound for rule in each.score.get("rules_broken", [])})
    verdict = {
        name: max((each.verdict.get(name, "") for each in sound), key=_WORST.index)
        for name in dict.fromkeys(name for each in sound for name in each.verdict)
    }
    oversize = any(size["total"] > size["cap"] for size in sizes)
    illegal = [f"breaks {' '.join(broken)}"] if broken else []
    illegal += [f"audit: not legal ({policy})"] if verdict.get(policy) == "not_legal" else []
    rejected = next((each.rejected for each in sound if each.rejected), "")
    return {
        "recipe": latest.run["recipe"],
        "scale": latest.run["scale"],
        "overrides": latest.run["overrides"],
        "seeds": [each.run["seed"] for each in sound],
        "rejected_seeds": [each.run["seed"] for each in scored if each.rejected],
        "protocol": protocol,
        **{name: value for name, value in asdict(told).items() if name != "values"},
        "bytes": max((size["total"] for size in sizes), default=None),
        "verdict": verdict,
        "illegal": illegal,
        "not_eligible": [
            *illegal,
            *(["oversize"] if oversize else []),
            *([f"rejected: {rejected}"] if rejected else []),
        ],
        "marks": sorted({mark for each in sound for mark in each.score.get("marks", [])}),
        "validation": latest.validation,
        "text_bytes": latest.score["bytes"],
        "runs": [each.run["id"] for each in sound],
    }


_WORST = ("legal", "", "unknown", "not_legal")  # several seeds have the worst verdict of any; "" is no verdict


class _Look:
    """Looks records up, each once."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._rejected = {record.key: reason for record, reason in store.rejected()}
        self._names: dict[tuple[str | None, str | None, int], str] = {}

    def scored(self, run: Mapping[str, Any], protocol: str) -> _Scored:
        """One score of a run, with what the store knows about it."""
        steps = {label_of(step): step["key"] for step in run["steps"] if "key" in step}
        return _Scored(
            run=run,
            protocol=protocol,
            score=run["scores"][protocol],
            verdict=run["scores"][protocol].get("verdict", {}),
            validation=self._validation(run, steps, protocol),
            rejected=self._rejection(steps.get(f"evaluate[{protocol}]", "")),
        )

    def _validation(self, run: Mapping[str, Any], steps: Mapping[str, str], protocol: str) -> str:
        text_bytes = run["scores"][protocol]["bytes"]
        # The same artifacts are the same data, and a store has many runs of them.
        known = (steps.get("corpus"), steps.get(f"evaluate[{protocol}]"), text_bytes)
        if known not in self._names:
            self._names[known] = validation(self._store, steps, run["resolved"], protocol, text_bytes)
        return self._names[known]

    def _rejection(self, key: str) -> str:
        """Why the result of a key was rejected; nothing if it, or one made again since, is sound."""
        if key not in self._rejected or self._store.get("evaluate", key) is not None:
            return ""
        return self._rejected[key]
