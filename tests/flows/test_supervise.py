"""How often a run may be revived, and what it then says."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from flows import supervise
from flows.supervise import REVIVALS, supervised


@pytest.fixture(autouse=True)
def here(monkeypatch: pytest.MonkeyPatch, tmp_path):
    monkeypatch.setenv("FAIRWAY_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)


def start(monkeypatch: pytest.MonkeyPatch, count: int) -> tuple[object, list[str]]:
    """A flow of which this is the start number `count`: its state, and whether it did any work."""
    monkeypatch.setattr(supervise, "flow_run", SimpleNamespace(run_count=count, id=None))
    worked: list[str] = []
    return supervised(lambda conduct: worked.append("once") or "its result"), worked


def test_a_run_is_revived_five_times(monkeypatch: pytest.MonkeyPatch):
    ended, worked = start(monkeypatch, REVIVALS + 1)
    assert (ended, worked, REVIVALS) == ("its result", ["once"], 5)


def test_a_run_that_was_revived_more_often_fails_at_once_and_says_why(monkeypatch: pytest.MonkeyPatch):
    ended, worked = start(monkeypatch, REVIVALS + 2)
    assert worked == []
    assert ended.is_failed()
    assert ended.message == "this run has crashed 5 times and is not revived again; look at its logs"
