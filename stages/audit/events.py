"""T4 and T8: whether what happened, happened in a legal order, and to every target once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from model.ledger import Event
from stages.audit.finding import Finding

TAIL_RESCORED = "tail_rescored"  # a kind of breach that some policies let pass: the published windows at the end
_SHOWN = 5  # events that a finding quotes


def audit_events(events: Sequence[Event], targets: int, known_targets: int | None = None) -> list[Finding]:
    """Check events in time order over `targets` targets.

    score   raises C4 when a target is scored twice or out of order
    again   raises C4
    reveal  raises C3 when it covers a target that was not scored before, and C4 when it does so more than once
    expose  raises C3 and C4
    """
    if not events:
        return [
            Finding(
                rule=rule, detector="T4", verdict="unknown", says="No journal of what was scored and revealed when."
            )
            for rule in ("C3", "C4")
        ]
    early, twice = _early(events), _twice(events)
    in_order, revealed = "Every target was scored in one pass, in order.", "Tokens were revealed once they were scored."
    return [
        _order("C3", early, revealed, "Tokens were revealed before they were scored."),
        _order("C4", twice, in_order, "Targets were scored, or read, more than once."),
        _coverage(events, targets, known_targets),
    ]


def _early(events: Sequence[Event]) -> list[Event]:
    scored, found = 0, []
    for event in events:
        if event.kind == "score":
            scored = max(scored, event.hi)
        elif event.kind in ("reveal", "expose") and event.hi > scored:
            found.append(event)
    return found


def _twice(events: Sequence[Event]) -> list[Event]:
    scored, ahead, found = 0, 0, []
    for event in events:
        if event.kind == "score":
            if event.lo < scored:
                found.append(event)
            scored = max(scored, event.hi)
        elif event.kind == "reveal" and event.hi > scored:
            if event.lo < ahead:  # passes over what is not scored yet
                found.append(event)
            ahead = max(ahead, event.hi)
        elif event.kind in ("again", "expose"):
            found.append(event)
    return found


def _order(rule: str, found: Sequence[Event], good: str, bad: str) -> Finding:
    shown = [{"kind": event.kind, "lo": event.lo, "hi": event.hi} for event in found[:_SHOWN]]
    evidence: dict[str, Any] = {"events": len(found), "first": shown} if found else {}
    if found and all(event.kind == "again" for event in found):
        evidence["kind"] = TAIL_RESCORED
    verdict = "fail" if found else "pass"
    return Finding(rule=rule, detector="T4", verdict=verdict, says=bad if found else good, evidence=evidence)


def _coverage(events: Sequence[Event], targets: int, known_targets: int | None) -> Finding:
    edges = np.zeros(targets + 1, dtype=np.int64)
    for event in events:
        if event.kind in ("score", "again"):
            edges[min(event.lo, targets)] += 1
            edges[min(event.hi, targets)] -= 1
    counts = edges.cumsum()[:targets]
    outside = sum(max(event.hi - targets, 0) for event in events if event.kind == "score")
    missing, again = int((counts == 0).sum()), int((counts - 1).clip(min=0).sum()) + outside
    asked = sum(event.hi - event.lo for event in events if event.kind == "again")
    evidence: dict[str, Any] = {
        "targets": targets,
        "missing": missing,
        "scored_again": again,
        "known_targets": known_targets,
    }
    if again and again == asked and not missing:
        evidence["kind"] = TAIL_RESCORED
    if missing or again:
        says = f"Each target counts once; {missing} are not scored and {again} prices are for targets scored before."
        return Finding(rule="E1", detector="T8", verdict="fail", says=says, evidence=evidence)
    if known_targets is not None and known_targets != targets:
        says = f"The whole split has {known_targets} targets; {targets} were scored."
        return Finding(rule="E1", detector="T8", verdict="fail", says=says, evidence=evidence)
    return Finding(
        rule="E1", detector="T8", verdict="pass", says=f"Each of {targets} targets was scored once.", evidence=evidence
    )
