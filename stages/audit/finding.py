"""What a detector says about a rule: one verdict, the evidence for it, and a sentence for people.

Rules (the challenge's, and the conditions that its reviewers settled on):
    C1 causal   C2 normalised   C3 score before update   C4 one pass
    E1 the whole split, in order   E2 bytes from the tokenizer   E3 any length   E4 nothing but the archive   E5 = C3
    B1 size   B2 training time   B3 evaluation time   B4 no outside compute
    D1 never train on val   D2 no train data after training   D3 calibration   D4 disjoint splits
    S1 .. S4 the bar for a record
Detectors T1 .. T17 are what was done to find out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

Verdict = Literal["pass", "fail", "unknown", "not_applicable"]


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One detector's verdict on one rule."""

    rule: str
    detector: str
    verdict: Verdict
    says: str
    evidence: Mapping[str, Any] = field(default_factory=dict)  # JSON values

    def to_dict(self) -> dict[str, Any]:
        """As it is written to verdict files."""
        return {
            "rule": self.rule,
            "detector": self.detector,
            "verdict": self.verdict,
            "says": self.says,
            "evidence": dict(self.evidence),
        }


def verdict_of(findings: Sequence[Finding]) -> Verdict:
    """The verdict of several findings on one rule: the worst; a doubt outweighs a pass."""
    for verdict in ("fail", "unknown", "pass"):
        if any(finding.verdict == verdict for finding in findings):
            return verdict
    return "not_applicable"
