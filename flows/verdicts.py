"""What the audit has found, as the summary, the terminal, Prefect's page and the report show it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Table = Mapping[str, Any]

WORDS = {
    "legal": "legal",
    "not_legal": "not legal",
    "unknown": "unknown",
    "pass": "pass",
    "fail": "fail",
    "not_applicable": "not judged here",
}


def summary(report: Table) -> dict[str, Any]:
    """The result object's `audit`, from the report of an audit's record; empty where there is no audit."""
    if "verdict" not in report:
        return {}
    return {name: report[name] for name in ("verdict", "rules", "scores")} | {
        "forward_tokens": report["forward_tokens"],
        "evaluation_forward_tokens": report["evaluation_forward_tokens"],
    }


def of_score(audit: Table, protocol: str) -> dict[str, str]:
    """{policy: outcome} of one score; empty for one that is not audited, such as a float diagnostic."""
    return {policy: each["verdict"] for policy, each in audit.get("scores", {}).get(protocol, {}).items()}


def is_legal(audit: Table, protocol: str) -> bool:
    """Whether a score may be called legal: every policy says so."""
    found = of_score(audit, protocol)
    return bool(found) and set(found.values()) == {"legal"}


def mark(audit: Table, protocol: str) -> str:
    """A score's verdict in a few words: `legal`, or what stands in the way by each policy; empty if not audited."""
    return words(of_score(audit, protocol))


def words(found: Mapping[str, str]) -> str:
    """{policy: outcome} as people read it: one word if the policies agree; empty if there is none."""
    outcomes = set(found.values())
    if len(outcomes) == 1:
        return WORDS[outcomes.pop()]
    return ", ".join(f"{policy}: {WORDS[outcome]}" for policy, outcome in found.items())


def lines(audit: Table) -> list[str]:
    """The run's verdict for people: policies side by side, then each reason once, with the scores that it is about."""
    if not audit:
        return []
    said = ["audit: " + ", ".join(f"{policy} {WORDS[outcome]}" for policy, outcome in audit["verdict"].items())]
    reasons: dict[str, dict[str, list[str]]] = {}
    for protocol, policies in audit["scores"].items():
        for policy, each in policies.items():
            for reason in each["because"]:
                reasons.setdefault(reason.strip(), {}).setdefault(protocol, []).append(policy)
    every, policies = set(audit["scores"]), list(audit["verdict"])
    for reason, about in reasons.items():
        where = [] if set(about) == every else sorted(about)
        by = sorted({policy for found in about.values() for policy in found}, key=policies.index)
        note = "; ".join([*([f"of {', '.join(where)}"] if where else []), *([f"{by[0]} only"] if len(by) == 1 else [])])
        said.append(f"  {reason}" + (f" ({note})" if note and len(policies) > 1 else ""))
    if unjudged := not_judged(audit):
        said.append(f"  not judged here: {', '.join(unjudged)}")
    return said


def not_judged(audit: Table) -> list[str]:
    """Rules that don't apply to this run, such as clocks on other hardware than the challenge's."""
    return sorted(
        {rule for score in audit["scores"].values() for each in score.values() for rule in each["not_judged"]}
    )


def rows(audit: Table, rules: Mapping[str, str]) -> list[dict[str, str]]:
    """One row per rule, for tables: its worst finding and what it says. `rules`: id -> sentence."""
    return [
        {"rule": rule, "verdict": WORDS[verdict], "what": rules.get(rule, "")}
        for rule, verdict in audit.get("rules", {}).items()
    ]


def cost(audit: Table) -> str:
    """Forward tokens of the audit beside those of the evaluations."""
    spent, scored = audit["forward_tokens"], audit["evaluation_forward_tokens"]
    share = f", {spent / scored:.1%} of evaluation's {scored:,}" if scored else ""
    return f"{spent:,} forward tokens{share}"


def findings(table: Table) -> list[dict[str, str]]:
    """Every finding of verdict.json as a row: those of the whole run, then each score's."""
    groups: list[tuple[str, Sequence[Table]]] = [("all", table["run"])]
    groups += [(name, score["findings"]) for name, score in table["scores"].items()]
    return [
        {
            "score": name,
            "rule": finding["rule"],
            "detector": finding["detector"],
            "verdict": finding["verdict"],
            "word": WORDS[finding["verdict"]],
            "says": finding["says"],
        }
        for name, group in groups
        for finding in group
    ]
