"""What the audit said of a score, from the records of a run's steps; who says nothing was not audited."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from artifacts.store import Store

NOT_AUDITED = "not audited"


def verdicts(store: Store, steps: Mapping[str, str], protocol: str) -> dict[str, str]:
    """Policy -> legal, not_legal or unknown, of one protocol; {} if no audit of it is in the store.

    Args:
        store: where the records are.
        steps: label -> key of a run's steps.
        protocol: whose score.
    """
    found: dict[str, str] = {}
    for label, key in steps.items():
        if label.partition("[")[0] != "audit":
            continue
        record = store.get("audit", key)
        scores: Mapping[str, Any] = record.report.get("scores", {}) if record is not None else {}
        for policy, judged in scores.get(protocol, {}).items():
            if isinstance(judged, Mapping) and "verdict" in judged:
                found[policy] = str(judged["verdict"])
    return found


def verdict_text(found: Mapping[str, str]) -> str:
    """`strict legal, board unknown`, or one word if all policies agree."""
    if not found:
        return NOT_AUDITED
    if len(set(found.values())) == 1:
        return next(iter(found.values())).replace("_", " ")
    return ", ".join(f"{policy} {verdict.replace('_', ' ')}" for policy, verdict in found.items())
