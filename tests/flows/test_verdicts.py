"""A verdict in words: one word where the policies agree, each reason once, and legal only if all say so."""

from __future__ import annotations

from typing import Any

from flows import verdicts

REPORT: dict[str, Any] = {
    "verdict": {"strict": "not_legal", "board": "unknown"},
    "rules": {"C4": "fail", "E1": "unknown", "B2": "not_applicable"},
    "scores": {
        "sliding": {
            "strict": {"verdict": "unknown", "because": ["E1: partial"], "not_judged": ["B2"]},
            "board": {"verdict": "unknown", "because": ["E1: partial"], "not_judged": ["B2"]},
        },
        "published": {
            "strict": {"verdict": "not_legal", "because": ["C4: tail", "E1: partial"], "not_judged": ["B2"]},
            "board": {"verdict": "unknown", "because": ["E1: partial"], "not_judged": ["B2"]},
        },
    },
    "forward_tokens": 5,
    "evaluation_forward_tokens": 50,
}


def test_a_score_has_one_word_where_policies_agree_and_two_where_they_differ() -> None:
    audit = verdicts.summary(REPORT)
    assert verdicts.mark(audit, "sliding") == "unknown"
    assert verdicts.mark(audit, "published") == "strict: not legal, board: unknown"
    assert verdicts.mark(audit, "raw") == ""


def test_each_reason_is_said_once_with_what_it_is_about() -> None:
    assert verdicts.lines(verdicts.summary(REPORT)) == [
        "audit: strict not legal, board unknown",
        "  E1: partial",
        "  C4: tail (of published; strict only)",
        "  not judged here: B2",
    ]
    assert verdicts.lines({}) == []


def test_legal_is_what_every_policy_calls_legal() -> None:
    audit = verdicts.summary(REPORT)
    assert not verdicts.is_legal(audit, "sliding")
    assert not verdicts.is_legal(audit, "not scored")
    judged = {policy: {"verdict": "legal", "because": [], "not_judged": []} for policy in ("strict", "board")}
    assert verdicts.is_legal({**audit, "scores": {"ttt": judged}}, "ttt")


def test_the_cost_is_told_beside_evaluations() -> None:
    assert verdicts.cost(REPORT) == "5 forward tokens, 10.0% of evaluation's 50"
    assert verdicts.cost({"forward_tokens": 5, "evaluation_forward_tokens": 0}) == "5 forward tokens"
