"""What a run has come to: the one JSON object that `fairway run --json` prints and everything else shows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from flows import verdicts
from flows.session import Outcome, Session

SCORE_FIELDS = ("bpb", "nats_per_token", "tokens", "bytes")


def summarise(session: Session, outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """The result object; parts of it are empty when the run stopped early, and the report is filled in last."""
    audit = next((verdicts.summary(o.record.report) for o in outcomes if o.step.stage == "audit"), {})
    return {
        "run": session.run.id,
        "recipe": session.recipe,
        "scale": session.scale,
        "seed": session.seed,
        "scores": {o.step.part: _score(o, audit) for o in outcomes if o.step.stage == "evaluate"},
        "audit": audit,
        "bytes": next((_sizes(o.record.report) for o in outcomes if o.step.stage == "weigh"), {}),
        "stages": [stage_line(o) for o in outcomes],
        "report": None,
    }


def stage_line(outcome: Outcome) -> dict[str, Any]:
    """One step as people and programs read it."""
    return {
        "stage": outcome.step.stage,
        "part": outcome.step.part,
        "state": outcome.state,
        "key": outcome.record.key,
        "artifact": outcome.artifact,
        "seconds": round(outcome.seconds, 3),
    }


def _score(outcome: Outcome, audit: Mapping[str, Any]) -> dict[str, Any]:
    report = outcome.record.report
    fields = {name: report[name] for name in SCORE_FIELDS}
    told: dict[str, Any] = {"marks": report["marks"]} if report.get("marks") else {}
    if report.get("rules_broken"):
        told["rules_broken"] = sorted(set(report["rules_broken"]))
    if audited := verdicts.of_score(audit, outcome.step.part):
        told["verdict"] = audited
    # What scoring cost when it was done, not what it cost to look the result up.
    return {**fields, "seconds": outcome.record.provenance.get("seconds"), **told}


def _sizes(report: Mapping[str, Any]) -> dict[str, Any]:
    return {name: report[f"{name}_bytes"] for name in ("code", "model", "total", "cap")}
