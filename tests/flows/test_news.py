"""What counts as a new best score, and when a failed audit is told."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from flows.news import AUDIT_FAILED, NEW_BEST, news

LEGAL = {"board": "legal", "strict": "unknown"}


class Runs:
    """A store of run documents."""

    def __init__(self, *runs: dict[str, Any], rejected: tuple[str, ...] = ()) -> None:
        self.runs = list(runs)
        self._rejected = rejected

    def list_runs(self) -> list[dict[str, Any]]:
        return self.runs

    def rejected(self) -> list[tuple[Any, str]]:
        return [(SimpleNamespace(stage="evaluate", key=key), "wrong") for key in self._rejected]

    def get(self, stage: str, key: str) -> None:
        return None


def run(name: str, bpb: float, **changes: Any) -> dict[str, Any]:
    """A completed run with one score."""
    score = {"bpb": bpb, "bytes": 1000, "verdict": LEGAL} | changes.pop("score", {})
    return {
        "id": name,
        "recipe": "toy",
        "scale": "full",
        "seed": 1,
        "state": "completed",
        "overrides": [],
        "resolved": {"evaluate": {"final": {"of": "archive", "protocol": "sliding"}}},
        "scores": {"final": score},
        "bytes": {"total": 10, "cap": 16},
        "steps": [{"stage": "evaluate", "part": "final", "key": f"key-{name}"}],
        "audit": {
            "verdict": LEGAL,
            "rules": {},
            "scores": {"final": {p: {"because": [], "not_judged": []} for p in LEGAL}},
        },
    } | changes


def told(store: Runs, document: dict[str, Any], state: str = "ran") -> list[str]:
    outcome = SimpleNamespace(state=state, step=SimpleNamespace(stage="audit"))
    return [each.event for each in news(store, document, [outcome])]  # type: ignore[arg-type]


def test_the_first_legal_score_and_each_lower_one_is_best_and_an_equal_one_is_not():
    assert told(Runs(), run("a", 1.2)) == [NEW_BEST]
    assert told(Runs(run("a", 1.2)), run("b", 1.1)) == [NEW_BEST]
    assert told(Runs(run("a", 1.2)), run("b", 1.2)) == []
    assert told(Runs(run("a", 1.2)), run("b", 1.3)) == []


def test_a_cached_run_tells_nothing():
    assert told(Runs(), run("a", 1.2), state="cached") == []


def test_only_what_may_stand_beside_a_score_can_beat_it():
    for other in (
        run("a", 1.0, scale="smoke"),
        run("a", 1.0, state="failed"),
        run("a", 1.0, score={"bytes": 2000}),  # other data
        run("a", 1.0, score={"verdict": {"board": "unknown", "strict": "unknown"}}),
        run("a", 1.0, score={"rules_broken": ["C1"]}),
        run("a", 1.0, bytes={"total": 20, "cap": 16}),
        run("a", 1.0, resolved={"evaluate": {"final": {"of": "archive", "protocol": "ttt"}}}),
        run("a", 1.0, recipe="another"),
    ):
        assert told(Runs(other), run("b", 1.2)) == [NEW_BEST], other
    assert told(Runs(run("a", 1.0), rejected=("key-a",)), run("b", 1.2)) == [NEW_BEST]


def test_a_best_of_a_recipe_says_whether_it_is_the_stores_too():
    outcome: Any = SimpleNamespace(state="ran", step=SimpleNamespace(stage="train"))
    for others, best in (([run("a", 1.0, recipe="another")], False), ([run("a", 1.3, recipe="another")], True)):
        store: Any = Runs(*others)
        (found,) = news(store, run("b", 1.2), [outcome])
        assert found.payload["best_of_store"] is best


def test_what_is_not_legal_is_told_as_that_and_never_as_best():
    audit = {
        "verdict": {"board": "not_legal", "strict": "not_legal"},
        "rules": {"C1": "fail", "C2": "pass"},
        "scores": {
            "final": {p: {"verdict": "not_legal", "because": ["C1: it looks ahead"], "not_judged": []} for p in LEGAL}
        },
    }
    document = run("a", 1.0, audit=audit, score={"verdict": audit["verdict"]})
    assert told(Runs(), document) == [AUDIT_FAILED]
    assert told(Runs(), document, state="cached") == []
    outcome: Any = SimpleNamespace(state="ran", step=SimpleNamespace(stage="audit"))
    store: Any = Runs()
    (found,) = news(store, document, [outcome])
    assert found.payload["says"] == "toy full seed 1: not legal by board, strict: C1: it looks ahead"
    assert found.payload["rules"] == ["C1"]
