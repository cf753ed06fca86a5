"""Policies are data: what decides, against which limit; a doubt is never rounded to a pass."""

from __future__ import annotations

from itertools import product

import pytest

from configs.load import challenge
from stages.audit.finding import Finding
from stages.audit.policy import judge, outcome, under, verdicts, worst_outcome

RULES = challenge()
STRICT, BOARD = RULES["policies"]["strict"], RULES["policies"]["board"]


def finding(rule: str, verdict: str, **evidence: object) -> Finding:
    return Finding(rule=rule, detector="T0", verdict=verdict, says=f"{rule} {verdict}", evidence=evidence)  # type: ignore[arg-type]


def everything(**changes: str) -> list[Finding]:
    return [finding(rule, changes.get(rule, "pass")) for rule in STRICT["rules"]]


def test_a_run_is_legal_when_every_rule_that_applies_was_looked_at_and_passed():
    assert judge(everything(B2="not_applicable"), STRICT)["verdict"] == "legal"
    assert judge(everything(B2="not_applicable"), STRICT)["not_judged"] == ["B2"]


@pytest.mark.parametrize("rule", STRICT["rules"])
def test_one_failure_one_doubt_or_one_rule_unseen_is_enough(rule: str):
    assert judge(everything(**{rule: "fail"}), STRICT)["verdict"] == "not_legal"
    assert judge(everything(**{rule: "unknown"}), STRICT)["verdict"] == "unknown"
    unseen = judge([f for f in everything() if f.rule != rule], STRICT)
    assert unseen["verdict"] == "unknown"
    assert unseen["because"] == [f"{rule}: nothing has looked at it"]


def test_a_pass_beside_a_failure_helps_nobody():
    assert judge([*everything(), finding("C1", "fail")], STRICT)["verdict"] == "not_legal"
    assert judge([*everything(C1="fail"), finding("C1", "pass")], STRICT)["because"] == ["C1: C1 fail"]


def test_legal_means_that_nothing_failed_and_nothing_is_open():
    for found in product(["pass", "fail", "unknown", "not_applicable"], repeat=3):
        assert (outcome(found) == "legal") == (not {"fail", "unknown"} & set(found))


def test_limits_replace_a_verdict_only_where_the_figure_is_there():
    assert under(finding("B1", "fail", files_bytes=16_000_001, packed_bytes=15_000_000), BOARD) == "pass"
    assert under(finding("B1", "fail", files_bytes=16_000_001, packed_bytes=15_000_000), STRICT) == "fail"
    assert under(finding("B1", "fail"), BOARD) == "fail"
    assert under(finding("B2", "not_applicable", process_s=9000.0, timer_s=9000.0), STRICT) == "not_applicable"


def test_the_tail_is_waived_by_the_board_alone():
    tail = finding("C4", "fail", kind="tail_rescored")
    assert (under(tail, BOARD), under(tail, STRICT)) == ("pass", "fail")
    assert under(finding("C4", "fail"), BOARD) == "fail"


def test_both_policies_stand_side_by_side_with_the_worst_finding_of_each_rule():
    table = verdicts([*everything(), finding("C4", "fail", kind="tail_rescored")], RULES)
    assert table["rules"]["C4"] == "fail"
    assert {name: each["verdict"] for name, each in table["policies"].items()} == {
        "strict": "not_legal",
        "board": "legal",
    }


def test_a_run_is_as_legal_as_its_worst_score():
    assert worst_outcome(["legal", "unknown", "not_legal"]) == "not_legal"
    assert worst_outcome(["legal", "unknown"]) == "unknown"
    assert worst_outcome(["legal"]) == "legal"
    assert worst_outcome([]) == "unknown"


def test_the_data_fits_together():
    for policy in RULES["policies"].values():
        assert set(policy["rules"]) <= set(RULES["rules"])
        assert {limit["rule"] for limit in policy["limits"]} <= set(policy["rules"])
        assert all(set(limit) == {"rule", "figure", "at_most"} for limit in policy["limits"])
    assert all({"name", "targets", "bytes", "sound"} <= set(row) for row in RULES["fingerprint"])
    assert all({"question", "source"} == set(ruling) for ruling in RULES["rulings"].values())
    for name, known in RULES["validation"].items():
        assert any(
            (row["targets"], row["bytes"]) == (known["targets"], known["bytes"]) for row in RULES["fingerprint"]
        ), name
