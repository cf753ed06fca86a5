"""From findings to verdicts: the worst finding of each rule, and what each policy makes of them all.

A policy is data (`configs/challenge.toml`): the rules that decide, and the limits that figures of findings must keep.
A rule that has no finding was not looked at, so it is unknown and so is the whole; a doubt is never rounded to a pass.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from stages.audit.finding import Finding, Verdict, verdict_of

Outcome = Literal["legal", "not_legal", "unknown"]


def verdicts(findings: Sequence[Finding], challenge: Mapping[str, Any]) -> dict[str, Any]:
    """{"rules": {rule: verdict}, "policies": {name: {"verdict", "rules", "because", "not_judged"}}} of one score.

    `rules` is by the findings themselves, which take the strictest view of every figure.
    """
    rules = worst_of_each(findings, challenge)
    policies = {name: judge(findings, policy) for name, policy in challenge["policies"].items()}
    return {"rules": rules, "policies": policies}


def worst_of_each(findings: Sequence[Finding], challenge: Mapping[str, Any]) -> dict[str, Verdict]:
    """Rule -> its worst finding; a rule of the challenge at which nothing has looked is unknown."""
    rules = [*challenge["rules"], *sorted({f.rule for f in findings} - set(challenge["rules"]))]
    seen = {rule: [f for f in findings if f.rule == rule] for rule in rules}
    return {rule: verdict_of(found) if found else "unknown" for rule, found in seen.items()}


def judge(findings: Sequence[Finding], policy: Mapping[str, Any]) -> dict[str, Any]:
    """What one policy makes of the findings."""
    rules: dict[str, Verdict] = {}
    because: list[str] = []
    not_judged: list[str] = []
    for rule in policy["rules"]:
        seen: list[tuple[Finding, Verdict]] = [(f, under(f, policy)) for f in findings if f.rule == rule]
        rules[rule] = _worst([verdict for _, verdict in seen]) if seen else "unknown"
        because += [f"{rule}: {f.says}" for f, verdict in seen if verdict == rules[rule] in ("fail", "unknown")]
        if not seen:
            because.append(f"{rule}: nothing has looked at it")
        if rules[rule] == "not_applicable":
            not_judged.append(rule)
    return {"verdict": outcome(list(rules.values())), "rules": rules, "because": because, "not_judged": not_judged}


def under(finding: Finding, policy: Mapping[str, Any]) -> Verdict:
    """A finding's verdict under a policy: waived, or held against the policy's own limit, or as it is."""
    if finding.verdict == "fail" and finding.evidence.get("kind") in policy.get("waived", ()):
        return "pass"
    if finding.verdict not in ("pass", "fail"):
        return finding.verdict
    limits = [
        limit for limit in policy["limits"] if limit["rule"] == finding.rule and limit["figure"] in finding.evidence
    ]
    if not limits:
        return finding.verdict
    within = all(finding.evidence[limit["figure"]] <= limit["at_most"] for limit in limits)
    return "pass" if within else "fail"


def outcome(rules: Sequence[Verdict]) -> Outcome:
    """Of all rules that decide: one failure is enough, and so is one doubt for not knowing."""
    if "fail" in rules:
        return "not_legal"
    return "unknown" if "unknown" in rules else "legal"


def _worst(found: Sequence[Verdict]) -> Verdict:
    order: tuple[Verdict, ...] = ("fail", "unknown", "pass", "not_applicable")
    return min(found, key=order.index) if found else "not_applicable"


def worst_outcome(outcomes: Sequence[Outcome]) -> Outcome:
    """Of several scores of one run."""
    order: tuple[Outcome, ...] = ("not_legal", "unknown", "legal")
    return min(outcomes, key=order.index) if outcomes else "unknown"
