"""What the submitter's side makes of the states that it sees, against a server that this test plays."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import httpx
import pytest
from prefect.client.schemas.objects import FlowRun, State
from prefect.states import Cancelled, Cancelling, Completed, Crashed, Failed, Pending, Running, Scheduled
from toyriver import make_tree
from toyrun import request, write_recipe

from configs.recipe import DeviceConfig
from flows import remote_dispatch
from flows.launch import Interrupted, StageFailed
from flows.prepare import prepare
from flows.remote_dispatch import LOST_LIMIT, Pool
from flows.river import Step
from flows.session import Session
from flows.signs import COUNT, STARTING
from stages.train.config import Config as TrainConfig


class Server:
    """Gives each new run the next list of states; the last state of a list stays."""

    api_url = "http://nowhere/api"
    speaks = False

    def __init__(self, *lives: list[State[Any]]) -> None:
        self.defaults: dict[str, str] = {}  # of the deployment's parameters
        self.lives = list(lives)
        self.runs: dict[str, FlowRun] = {}  # by idempotency key
        self.asked: list[State[Any]] = []  # states that were set from outside
        self.taken = False  # whether a worker takes a run just before it is cancelled

    def read_deployment_by_name(self, name: str) -> Any:
        return SimpleNamespace(id=uuid4(), parameters=self.defaults)

    def create_flow_run_from_deployment(self, deployment: Any, **asked: Any) -> FlowRun:
        key = asked["idempotency_key"]
        if key not in self.runs:
            parameters = {**self.defaults, **asked["parameters"]}  # as Prefect merges them
            made = FlowRun(id=uuid4(), flow_id=uuid4(), name=asked["name"], parameters=parameters)
            object.__setattr__(made, "state", Scheduled())
            self.runs[key] = made
            self._life = {made.id: list(self.lives.pop(0)), **getattr(self, "_life", {})}
        return self.runs[key]

    def read_flow_run(self, run_id: Any) -> FlowRun:
        run = next(each for each in self.runs.values() if each.id == run_id)
        if self.speaks:  # its worker, at every look
            run.labels = {COUNT: int(run.labels.get(COUNT, 0)) + 1}
        if life := self._life[run_id]:
            run.state = life.pop(0)
        return run

    def set_flow_run_state(self, run_id: Any, state: State[Any], force: bool = False) -> None:
        self.asked.append(state)
        self._life[run_id] = [state, Cancelled()]

    def read_flow_run_states(self, run_id: Any) -> list[State[Any]]:
        return [Scheduled(), *([Pending()] if self.taken else []), *self.asked]

    def read_artifacts(self, **asked: Any) -> list[Any]:
        return []


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tree(tmp_path_factory.mktemp("toys") / "tree")


@pytest.fixture
def dispatch(tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Sends a training to a server with the given lives; what `make` returned, and the session's notes."""
    monkeypatch.setattr(remote_dispatch, "POLL_S", 0.001)
    monkeypatch.setattr(remote_dispatch, "server_now", lambda api: datetime.now(UTC))
    monkeypatch.setattr(remote_dispatch, "publish_source", lambda stage, session: "0" * 64)
    write_recipe(tmp_path)
    notes: list[str] = []

    def send(server: Server, found: Any = None, each: Any = None) -> Any:
        @contextmanager
        def client():
            yield server

        monkeypatch.setattr(remote_dispatch, "_client", client)
        with prepare(request(tmp_path, tree), lambda event: notes.append(event.text)) as prepared:
            session = prepared.session
            monkeypatch.setattr(Session, "find", lambda self, step, components: found)
            if each is not None:
                each(session)
            step = Step("train", "", TrainConfig(), {}, 1, DeviceConfig())
            key, components = session.key(step)
            return Pool("gpu").make(step, key, components, session)

    send.notes = notes
    return send


@pytest.mark.parametrize("deployed", [{}, {"credentials": ""}, {"credentials": "fairway-s3/lab"}])
def test_a_run_without_credentials_does_not_get_those_of_a_store_that_was_deployed_since(dispatch, deployed):
    server = Server([Running(), Completed()])
    server.defaults = deployed
    assert dispatch(server, RECORD)[0] is RECORD
    (sent,) = server.runs.values()
    assert not sent.parameters.get("credentials")


def lost() -> list[State[Any]]:
    return [Running(), Crashed(message="its worker is gone")]


RECORD = object()


def test_a_stage_may_be_lost_three_times(dispatch):
    server = Server(*[lost() for _ in range(LOST_LIMIT)], [Pending(), Running(), Completed()])
    record, made_now, _ = dispatch(server, found=RECORD)
    assert record is RECORD
    assert made_now
    assert [run.parameters["attempt"] for run in server.runs.values()] == [0, 1, 2, 3]
    assert sum("sent again" in note for note in dispatch.notes) == LOST_LIMIT == 3


def test_a_stage_that_was_lost_more_than_three_times_fails_and_says_so(dispatch):
    server = Server(*[lost() for _ in range(9)])
    with pytest.raises(StageFailed, match="train was lost 4 times in the pool gpu; last: its worker is gone") as failed:
        dispatch(server)
    assert failed.value.kind == "crash"
    assert "Prefect run" in str(failed.value.log)
    assert len(server.runs) == LOST_LIMIT + 1


def test_a_failed_stage_is_not_sent_again(dispatch):
    server = Server([Running(), Failed(name="Refused", message="steps must be positive")])
    with pytest.raises(StageFailed, match="steps must be positive") as failed:
        dispatch(server)
    assert failed.value.kind == "user"
    assert len(server.runs) == 1


def test_attempts_that_ended_before_are_passed_over_and_not_counted(dispatch):
    server = Server(*[lost() for _ in range(LOST_LIMIT + 1)], [Running(), Completed()])
    with pytest.raises(StageFailed):
        dispatch(server)
    record, _, _ = dispatch(server, found=RECORD)  # another run, later: it starts with a clean slate
    assert record is RECORD
    assert len(server.runs) == LOST_LIMIT + 2


def test_a_run_that_is_handed_over_leaves_its_stage_alone_and_a_stopped_one_cancels_it(dispatch):
    def stopped(session: Session) -> None:
        threading.Timer(0.05, session.cancel.set).start()

    def handed_over(session: Session) -> None:
        session.handed_over = lambda: True
        stopped(session)

    server = Server([Running()])
    with pytest.raises(Interrupted, match="goes on"):
        dispatch(server, each=handed_over)
    assert server.asked == []
    with pytest.raises(Interrupted, match="was stopped"):
        dispatch(server, each=stopped)
    assert [state.name for state in server.asked] == ["Cancelling"]


@pytest.mark.parametrize(("taken", "asked"), [(False, ["Cancelled"]), (True, ["Cancelled", "Cancelling"])])
def test_a_stage_that_waits_is_cancelled_even_if_a_worker_takes_it_in_that_moment(
    dispatch, taken: bool, asked: list[str]
):
    """Prefect's server lets a cancelled run become a running one, and nobody would wait for it any more."""
    server = Server([Scheduled()])
    server.taken = taken
    with pytest.raises(Interrupted, match="was stopped"):
        dispatch(server, each=lambda session: threading.Timer(0.05, session.cancel.set).start())
    assert [state.name for state in server.asked] == asked


def test_a_stage_that_was_cancelled_with_another_run_is_sent_again_and_one_cancelled_by_hand_is_not(dispatch):
    message = "cancelled because its run 20260101-000000-000-abcd was stopped"
    server = Server([Running(), Cancelled(message=message)], [Running(), Completed()])
    record, _, _ = dispatch(server, found=RECORD)
    assert record is RECORD
    server = Server([Running(), Cancelled(message="")])
    with pytest.raises(Interrupted, match="by hand"):
        dispatch(server)


def starting() -> State[Any]:
    """As a worker of ours calls it."""
    return Pending(name=STARTING)


@pytest.mark.parametrize(
    ("state", "limit"), [(Running, "SILENCE_S"), (starting, "SILENCE_S"), (Pending, "START_LIMIT_S")]
)
def test_a_silent_stage_is_declared_dead_and_sent_again(dispatch, monkeypatch: pytest.MonkeyPatch, state, limit: str):
    monkeypatch.setattr(remote_dispatch, "LOOK_FOR_LIFE_EVERY_S", 0.0)
    monkeypatch.setattr(remote_dispatch, limit, 0.05)
    server = Server([state()], [Running(), Completed()])
    record, _, _ = dispatch(server, found=RECORD)
    assert record is RECORD
    (declared,) = server.asked
    assert declared.is_crashed()
    assert "no sign of life" in declared.message


def test_a_stage_that_was_cancelled_and_whose_machine_is_gone_is_not_sent_again(
    dispatch, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(remote_dispatch, "LOOK_FOR_LIFE_EVERY_S", 0.0)
    monkeypatch.setattr(remote_dispatch, "SILENCE_S", 0.05)
    server = Server([Running(), Cancelling(message="by Ada")], [Running(), Completed()])
    with pytest.raises(Interrupted, match="by Ada"):
        dispatch(server, found=RECORD)
    assert [state.name for state in server.asked] == ["Cancelled"]
    assert len(server.runs) == 1


def test_a_server_that_restarts_while_a_stage_is_declared_dead_is_told_again(dispatch, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(remote_dispatch, "LOOK_FOR_LIFE_EVERY_S", 0.0)
    monkeypatch.setattr(remote_dispatch, "SILENCE_S", 0.05)
    server = Server([Running()], [Running(), Completed()])
    tell, away = server.set_flow_run_state, [httpx.ConnectError("restarting")]

    def told(*asked: Any, **more: Any) -> None:
        if away:
            raise away.pop()
        tell(*asked, **more)

    monkeypatch.setattr(server, "set_flow_run_state", told)
    assert dispatch(server, found=RECORD)[0] is RECORD
    assert [state.is_crashed() for state in server.asked] == [True]


@pytest.mark.parametrize(("state", "speaks"), [(starting, True), (Pending, False)])
def test_a_slow_start_is_no_death_while_its_worker_speaks_nor_where_no_worker_ever_does(
    dispatch, monkeypatch: pytest.MonkeyPatch, state, speaks: bool
):
    monkeypatch.setattr(remote_dispatch, "LOOK_FOR_LIFE_EVERY_S", 0.0)
    monkeypatch.setattr(remote_dispatch, "SILENCE_S", 0.0)
    same = state()
    server = Server([*[same] * 50, Running(), Completed()])
    server.speaks = speaks
    record, _, _ = dispatch(server, found=RECORD)
    assert record is RECORD
    assert server.asked == []


def test_a_stage_that_no_worker_has_taken_yet_may_wait_for_ever(dispatch, monkeypatch: pytest.MonkeyPatch):
    for name in ("LOOK_FOR_LIFE_EVERY_S", "SILENCE_S", "START_LIMIT_S"):
        monkeypatch.setattr(remote_dispatch, name, 0.0)
    server = Server([*[Scheduled()] * 50, Completed()])
    record, _, _ = dispatch(server, found=RECORD)
    assert record is RECORD
    assert server.asked == []
