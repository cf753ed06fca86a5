"""The verdict on every recipe, by published bytes and losses and by its protocols: as published history found it."""

from __future__ import annotations

from typing import Any

import pytest

from configs.load import challenge, load_recipe, names
from flows.commands.recipes import describe
from stages.audit.published import judge_published

# By the policy of the board, which is published history: the rules that a system breaks.
HISTORY = {
    "pr398": {"C1", "C3", "C4"},
    "pr417": {"C1", "C3", "C4"},
    "pr714": {"B1"},
    "pr1033": {"C2"},
}
TWINS = ("pr398-legal", "pr417-legal", "pr1033-legal", "pr714-fit")
# Published numbers that count the last targets of the stream several times: legal in form, and not to the letter.
TAILS = ("pr417-int5", "pr1232", "pr1232-flow")


def policies(name: str) -> dict[str, Any]:
    return describe(name)["judged"]


def failed(judged: dict[str, Any]) -> set[str]:
    return {rule for rule, verdict in judged["rules"].items() if verdict == "fail"}


@pytest.mark.parametrize("name", names("recipe"))
def test_the_board_finds_what_published_history_found(name: str) -> None:
    judged = policies(name)["board"]
    assert failed(judged) == HISTORY.get(name, set())
    assert judged["verdict"] == ("not_legal" if name in HISTORY else "legal"), judged["because"]


@pytest.mark.parametrize("name", names("recipe"))
def test_to_the_letter_a_tail_that_is_scored_again_breaks_one_pass(name: str) -> None:
    judged = policies(name)["strict"]
    tail = {"C4"} if name in {*HISTORY, *TAILS} else set[str]()
    assert failed(judged) == HISTORY.get(name, set()) | tail


@pytest.mark.parametrize("name", TWINS)
def test_legal_twins_pass_both(name: str) -> None:
    assert {judged["verdict"] for judged in policies(name).values()} == {"legal"}


def test_a_published_archive_over_the_cap_is_told_with_its_bytes() -> None:
    (reason,) = policies("pr714")["board"]["because"]
    assert reason == "B1: 3 of 3 archives over the cap, by up to 129,153 bytes"


@pytest.mark.parametrize("name", [*HISTORY, *TAILS, "baseline"])
def test_published_losses_and_scores_have_a_known_denominator(name: str) -> None:
    findings = judge_published(load_recipe(name).recipe.published, {}, challenge())
    known = [f for f in findings if f.detector == "T11"]
    assert known
    assert {(f.rule, f.verdict) for f in known} <= {("E2", "pass"), ("C4", "fail")}
    assert all(f.evidence["tolerance_bytes"] < 10 for f in known)


def test_a_wrong_byte_or_a_doubled_space_in_published_figures_is_caught() -> None:
    published = load_recipe("pr714").recipe.published
    heavier = {**published, "total_bytes": [15_000_000, 16_000_001, 15_000_000]}
    doubled = {**published, "bpb_ttt": [bpb / 1.1671 for bpb in published["bpb_ttt"]]}
    assert any(f.rule == "B1" and f.verdict == "fail" for f in judge_published(heavier, {}, challenge()))
    assert any(f.rule == "E2" and f.verdict == "fail" for f in judge_published(doubled, {}, challenge()))


def test_what_only_a_run_can_show_is_left_to_its_audit() -> None:
    judged = policies("pr1232")["board"]
    assert set(judged["not_judged"]) == {"B2", "B3", "D1", "D3", "D4", "E1", "E4", "R1"}
