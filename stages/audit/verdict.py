"""verdict.json: the findings, the worst of each rule, and what every policy makes of each score and of the run.

{"verdict": {policy: outcome}, "rules": {rule: verdict}, "scores": {protocol: {"verdict", "rules", "policies",
"findings", "forward_tokens"}}, "run": [finding, ...], "rulings": {...}, "forward_tokens", "evaluation_forward_tokens"}

An outcome is legal, not_legal or unknown. The run's is that of its worst score; `run` holds the findings that every
score shares. A rule that a policy lists under `not_judged` does not apply here, such as clocks on other hardware.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stages.audit.finding import Finding
from stages.audit.policy import verdicts, worst_of_each, worst_outcome


@dataclass(frozen=True)
class Examined:
    """What was found out about one score, and what it cost."""

    findings: Sequence[Finding]
    forward_tokens: int = 0  # of the audit
    evaluation_forward_tokens: int = 0  # of the score itself


def verdict_table(
    run: Sequence[Finding], scores: Mapping[str, Examined], challenge: Mapping[str, Any], evaluated_tokens: int
) -> dict[str, Any]:
    """verdict.json as a value. `evaluated_tokens` went forward in all evaluations, diagnostics included."""
    judged = {name: verdicts([*run, *each.findings], challenge) for name, each in scores.items()}
    every = [*run, *(finding for each in scores.values() for finding in each.findings)]
    policies = {
        policy: worst_outcome([each["policies"][policy]["verdict"] for each in judged.values()])
        for policy in challenge["policies"]
    }
    asked = sorted({f.evidence["ruling"] for f in every if "ruling" in f.evidence})
    return {
        "verdict": policies,
        "rules": worst_of_each(every, challenge),
        "scores": {
            name: {
                "verdict": {policy: judged[name]["policies"][policy]["verdict"] for policy in policies},
                **judged[name],
                "findings": [finding.to_dict() for finding in each.findings],
                "forward_tokens": each.forward_tokens,
                "evaluation_forward_tokens": each.evaluation_forward_tokens,
            }
            for name, each in scores.items()
        },
        "run": [finding.to_dict() for finding in run],
        "rulings": {name: challenge["rulings"][name] for name in asked if name in challenge["rulings"]},
        "forward_tokens": sum(each.forward_tokens for each in scores.values()),
        "evaluation_forward_tokens": evaluated_tokens,
    }


def write_verdict(folder: Path, table: Mapping[str, Any]) -> None:
    """verdict.json, for programs and people."""
    text = json.dumps(table, indent=1, allow_nan=False, ensure_ascii=False)
    (folder / "verdict.json").write_text(text + "\n", encoding="utf-8")


def report(table: Mapping[str, Any]) -> dict[str, Any]:
    """The small part that stays in the record: verdicts, what decided them, and the cost."""
    return {
        "verdict": table["verdict"],
        "rules": table["rules"],
        "scores": {
            name: {
                policy: {"verdict": each["verdict"], "because": each["because"], "not_judged": each["not_judged"]}
                for policy, each in score["policies"].items()
            }
            for name, score in table["scores"].items()
        },
        "forward_tokens": table["forward_tokens"],
        "evaluation_forward_tokens": table["evaluation_forward_tokens"],
    }
