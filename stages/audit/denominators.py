"""T11: what a score was divided by. Its loss and its bits per byte give the bytes away, to one byte at eight decimals.

    bytes = nats per token / ln 2 * targets / bits per byte

Compared with the denominators that are known of the published validation set (`challenge.toml`), that shows bytes
counted twice, a tail that was scored again, and a part of the set taken for all of it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from stages.audit.finding import Finding, Verdict

TAIL = "I26"  # the class of a tail that is scored again


@dataclass(frozen=True)
class Claim:
    """One score as somebody published it. `decimals` say how far the two numbers can be trusted."""

    name: str
    nats_per_token: float
    bpb: float
    nats_decimals: int = 17
    bpb_decimals: int = 17


@dataclass(frozen=True)
class Implied:
    """The bytes that a claim implies, and how far they may be off by the rounding of its two numbers."""

    bytes: float
    tolerance: float


def divided_by(nats_per_token: float, bpb: float, targets: int) -> float:
    """The bytes that a score of so many targets was divided by."""
    return nats_per_token / math.log(2) * targets / bpb


def implied_bytes(claim: Claim, targets: int) -> Implied:
    """The denominator of a claim over `targets` targets."""
    found = divided_by(claim.nats_per_token, claim.bpb, targets)
    rounding = 0.5 * 10.0**-claim.nats_decimals / claim.nats_per_token + 0.5 * 10.0**-claim.bpb_decimals / claim.bpb
    return Implied(found, found * rounding + 0.5)


def check_claim(claim: Claim, targets: int, known: Sequence[Mapping[str, Any]]) -> Finding:
    """One claim over `targets` targets of the published validation set."""
    implied = implied_bytes(claim, targets)
    evidence: dict[str, Any] = {
        "score": claim.name,
        "targets": targets,
        "implied_bytes": round(implied.bytes, 1),
        "tolerance_bytes": round(implied.tolerance, 1),
    }
    rows = [row for row in known if row["targets"] == targets]
    if not rows:
        says = f"no denominator is known for {targets:,} targets: not the published validation set, or not all of it"
        return _finding("unknown", "E1", says, evidence)
    near = [row for row in rows if abs(row["bytes"] - implied.bytes) <= implied.tolerance]
    if not near:
        closest = min(rows, key=lambda row: abs(row["bytes"] - implied.bytes))
        says = (
            f"{claim.name} was divided by {implied.bytes:,.0f} bytes; no known way of counting gives that, the nearest "
            f"is {closest['bytes']:,} ({closest['name']})"
        )
        return _finding("fail", "E2", says, {**evidence, "ratio": implied.bytes / closest["bytes"]})
    return _recognised(claim, near, evidence)


def check_claim_fully(claim: Claim, targets: int, known: Sequence[Mapping[str, Any]]) -> list[Finding]:
    """As `check_claim`; where targets were counted twice and bytes were not, that is said of the bytes too."""
    found = check_claim(claim, targets, known)
    if found.rule != "C4":
        return [found]
    says = f"{claim.name} counts bytes by the reference rule"
    return [found, _finding("pass", "E2", says, dict(found.evidence) | {"kind": ""})]


def _recognised(claim: Claim, near: Sequence[Mapping[str, Any]], evidence: dict[str, Any]) -> Finding:
    names = [row["name"] for row in near]
    verdicts = {_verdict(row) for row in near}
    evidence = {**evidence, "known_as": names}
    if len(verdicts) > 1:
        says = f"{claim.name} is too roughly rounded to tell {' from '.join(names)}"
        return _finding("unknown", "E2", says, evidence)
    ((verdict, rule),) = verdicts
    if rule == "C4":
        evidence["kind"] = "tail_rescored"
    says = f"{claim.name} was divided by {evidence['implied_bytes']:,.0f} bytes: {' or '.join(names)}"
    return _finding(verdict, rule, says, evidence)


def _verdict(row: Mapping[str, Any]) -> tuple[Verdict, str]:
    """(verdict, rule) of a known denominator. A tail that is scored again counts bytes well and targets twice."""
    if row["sound"]:
        return "pass", "E2"
    return "fail", "C4" if row["class"] == TAIL else "E2"


def check_score(score: Mapping[str, Any], known: Sequence[Mapping[str, Any]]) -> list[Finding]:
    """A score of ours: its sums agree with one another; and with the known ones, where it is that many targets."""
    again = score["nats"] / math.log(2) / score["bytes"]
    sums = {"nats": score["nats"], "bytes": score["bytes"], "tokens": score["tokens"], "bpb": score["bpb"]}
    if not math.isclose(again, score["bpb"], rel_tol=1e-12):
        says = f"the score says {score['bpb']:.8f}; its own sums give {again:.8f}"
        return [_finding("fail", "E2", says, {**sums, "again": again})]
    findings = [_finding("pass", "E2", "bits per byte are nats / ln 2 / bytes, to the last bit of the sums", sums)]
    rows = [row for row in known if row["targets"] == score["tokens"]]
    if rows:
        once = score.get("each_target_once", score)
        claim = Claim("score", once["nats_per_token"], once["bpb"])
        findings.append(check_claim(claim, once["tokens"], known))
    else:
        says = f"{score['tokens']:,} targets are not those of the published validation set, whose bytes are known"
        findings.append(_finding("not_applicable", "E2", says, {"tokens": score["tokens"]}))
    return findings


def _finding(verdict: Verdict, rule: str, says: str, evidence: dict[str, Any]) -> Finding:
    return Finding(rule=rule, detector="T11", verdict=verdict, says=says, evidence=evidence)
