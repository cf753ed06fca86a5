"""The order in a ledger: what is legal and what is not."""

from __future__ import annotations

import pytest

from model.ledger import Event
from stages.audit.events import audit_events


def failing(events: list[Event], targets: int = 100, known: int | None = None) -> set[str]:
    return {finding.rule for finding in audit_events(events, targets, known) if finding.verdict == "fail"}


GOOD = [Event("score", 0, 40), Event("reveal", 0, 30), Event("score", 40, 100), Event("reveal", 30, 100)]


def test_chunks_that_are_scored_then_revealed_pass():
    assert {finding.verdict for finding in audit_events(GOOD, 100)} == {"pass"}


@pytest.mark.parametrize(
    ("events", "broken"),
    [
        ([Event("reveal", 0, 30), *GOOD], {"C3"}),
        ([Event("score", 0, 40), Event("reveal", 0, 41), Event("score", 40, 100)], {"C3"}),
        ([Event("expose", 0, 100), *GOOD], {"C3", "C4"}),
        ([*GOOD, Event("again", 96, 100)], {"C4", "E1"}),
        ([*GOOD, Event("score", 0, 100)], {"C4", "E1"}),
        ([Event("score", 50, 100), Event("score", 0, 50)], {"C4"}),
        ([Event("score", 0, 99)], {"E1"}),
        ([Event("score", 0, 40), Event("score", 41, 100)], {"E1"}),
        ([Event("score", 0, 101)], {"E1"}),
    ],
)
def test_each_disorder_breaks_its_rule(events, broken):
    assert failing(events) == broken


def test_a_part_of_the_split_is_not_the_split():
    assert failing(GOOD, known=100) == set()
    assert failing(GOOD, known=120) == {"E1"}


def test_without_a_journal_nothing_is_known():
    assert {finding.verdict for finding in audit_events([], 100)} == {"unknown"}


def test_the_published_tail_is_told_apart_from_other_second_scores():
    kinds = [
        {f.rule: f.evidence.get("kind") for f in audit_events([*GOOD, event], 100)}
        for event in (Event("again", 96, 100), Event("score", 96, 100))
    ]
    assert kinds == [
        {"C3": None, "C4": "tail_rescored", "E1": "tail_rescored"},
        {"C3": None, "C4": None, "E1": None},
    ]
