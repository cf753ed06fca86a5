"""How often a run may be revived, and what it then says."""

from __future__ import annotations

from contextlib import nullcontext
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from uuid import uuid4

import pytest
from prefect.client.schemas.objects import State
from prefect.states import Crashed, Failed, Pending, Running, Scheduled

from flows import supervise
from flows.supervise import REVIVALS, supervised


@pytest.fixture(autouse=True)
def here(monkeypatch: pytest.MonkeyPatch, tmp_path):
    monkeypatch.setenv("FAIRWAY_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)


LIFE = [Scheduled, Pending, Running, Crashed]


def start(monkeypatch: pytest.MonkeyPatch, history: list[type[State]]) -> tuple[State, list[str]]:
    """A flow that starts with this history: its state, and whether it did any work."""
    begin = datetime(2026, 1, 1, tzinfo=UTC)
    states = [each(timestamp=begin + timedelta(seconds=at)) for at, each in enumerate(history)]
    server = SimpleNamespace(read_flow_run_states=lambda own: states[::-1])
    monkeypatch.setattr(supervise, "get_client", lambda sync_client: nullcontext(server))
    count = 1 + sum(state.is_running() for state in states)
    monkeypatch.setattr(supervise, "own_id", uuid4)
    monkeypatch.setattr(supervise.Vigil, "_beat", lambda vigil: None)  # it would start a server to tell
    monkeypatch.setattr(supervise, "flow_run", SimpleNamespace(run_count=count, id=str(uuid4())))
    worked: list[str] = []
    return supervised(lambda conduct: worked.append("once") or "its result", ".fairway", ""), worked


def test_a_run_is_revived_five_times(monkeypatch: pytest.MonkeyPatch):
    ended, worked = start(monkeypatch, LIFE * 5)
    assert ended.is_completed()
    assert (worked, REVIVALS) == (["once"], 5)


def test_a_run_that_crashed_more_often_fails_at_once_and_says_why(monkeypatch: pytest.MonkeyPatch):
    ended, worked = start(monkeypatch, LIFE * 6)
    assert worked == []
    assert ended.is_failed()
    assert ended.message == "this run has crashed 6 times and is not revived again; look at its logs"


def test_a_person_may_start_a_run_as_often_as_it_takes(monkeypatch: pytest.MonkeyPatch):
    given_up = [*LIFE * 6, Scheduled, Running, Failed]
    for history in (given_up, [Scheduled, Running, Failed] * 9):
        ended, worked = start(monkeypatch, history)
        assert ended.is_completed()
        assert worked == ["once"]
