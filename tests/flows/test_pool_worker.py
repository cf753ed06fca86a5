"""Our worker, without a server: what it takes and what it says."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import anyio
import httpx
import pytest
from prefect.client.schemas.objects import State
from prefect.events.schemas.automations import Posture
from prefect.states import Cancelled, Cancelling, Completed, Crashed, Pending, Running, Scheduled
from prefect.workers.process import ProcessWorker, ProcessWorkerResult

from flows import pool_worker
from flows.closure import ROOT
from flows.deploy import _automations
from flows.pool_worker import PoolWorker
from flows.signs import COUNT, STARTING, WORKER

HELD, NEW = (SimpleNamespace(flow_run=SimpleNamespace(id=uuid4())) for _ in range(2))


def taken(limit: int | None, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What is handed to Prefect of two runs that are due, while one of them holds a slot."""

    async def submit(self: Any, flow_run_response: list[Any]) -> list[Any]:
        return flow_run_response

    async def poll() -> list[Any]:
        worker = PoolWorker(work_pool_name="gpu", name="here", limit=limit)
        if limit is not None:
            worker._limiter = anyio.CapacityLimiter(limit)
            worker._limiter.acquire_on_behalf_of_nowait(HELD.flow_run.id)
            with pytest.raises(RuntimeError, match="already holding"):  # what ends Prefect's own worker
                worker._limiter.acquire_on_behalf_of_nowait(HELD.flow_run.id)
        return await worker._submit_scheduled_flow_runs([HELD, NEW])

    monkeypatch.setattr(ProcessWorker, "_submit_scheduled_flow_runs", submit)
    return asyncio.run(poll())


def test_a_run_that_holds_a_slot_is_left_where_it_is(monkeypatch: pytest.MonkeyPatch):
    assert taken(2, monkeypatch) == [NEW]
    assert taken(None, monkeypatch) == [HELD, NEW]


def test_the_end_of_a_process_is_not_told_a_second_time(monkeypatch: pytest.MonkeyPatch):
    async def run(self: Any, flow_run: Any, configuration: Any, task_status: Any) -> ProcessWorkerResult:
        task_status.started(17)
        return ProcessWorkerResult(status_code=-9, identifier="17")

    monkeypatch.setattr(ProcessWorker, "run", run)
    worker = PoolWorker(work_pool_name="gpu", name="here")
    configuration = SimpleNamespace(env={})
    ended = asyncio.run(worker.run(HELD.flow_run, configuration))
    assert (ended.status_code, ended.identifier) == (0, "17")
    assert configuration.env == {WORKER: str(os.getpid())}


class Server:
    """What the worker asks of it about one run, which has been started once before."""

    def __init__(self, *seen: State[Any], run_count: int = 1) -> None:
        self.seen, self.run_count, self.labels = list(seen), run_count, {}

    async def read_flow_run(self, run_id: Any) -> Any:
        state = self.seen.pop(0) if len(self.seen) > 1 else self.seen[0]
        return SimpleNamespace(state=state, run_count=self.run_count)

    async def update_flow_run_labels(self, run_id: Any, labels: dict[str, Any]) -> None:
        self.labels |= labels


OURS = Pending(name=STARTING, id=uuid4())
TAKEN = SimpleNamespace(id=uuid4(), run_count=1)


def spoken(monkeypatch: pytest.MonkeyPatch, server: Server) -> bool:
    """Whether the worker ends the process when it speaks for the run until it stops doing so by itself."""
    monkeypatch.setattr(pool_worker, "BEAT_EVERY_S", 0.0)

    async def speak() -> None:
        worker = PoolWorker(work_pool_name="gpu", name="here")
        worker._client, worker._starting[TAKEN.id] = server, OURS.id
        await worker._speak_for(TAKEN, pool_worker._Started(anyio.TASK_STATUS_IGNORED))

    ended: list[None] = []
    monkeypatch.setattr(pool_worker._Started, "end", lambda self: ended.append(None))
    asyncio.run(speak())
    return bool(ended)


def test_a_worker_speaks_for_a_run_until_it_has_begun(monkeypatch: pytest.MonkeyPatch):
    class Begins(Server):
        async def update_flow_run_labels(self, run_id: Any, labels: dict[str, Any]) -> None:
            await super().update_flow_run_labels(run_id, labels)
            self.run_count += self.labels[COUNT] == 7

    server = Begins(OURS)
    assert not spoken(monkeypatch, server)
    assert server.labels == {COUNT: 7}


@pytest.mark.parametrize("state", [Crashed(), Cancelled(), Scheduled(), Pending(name=STARTING, id=uuid4())])
def test_a_start_that_nobody_waits_for_any_more_ends(monkeypatch: pytest.MonkeyPatch, state: State[Any]):
    server = Server(OURS, OURS, state)
    assert spoken(monkeypatch, server)
    assert server.labels == {COUNT: 2}


@pytest.mark.parametrize("state", [Completed(), Crashed(), Running()])
def test_a_run_that_has_begun_is_left_to_itself_however_it_has_ended(
    monkeypatch: pytest.MonkeyPatch, state: State[Any]
):
    assert not spoken(monkeypatch, Server(state, run_count=2))
    assert not spoken(monkeypatch, Server(Cancelling()))  # Prefect sees to that, begun or not


def test_a_start_that_takes_too_long_ends(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(pool_worker, "START_LIMIT_S", -1.0)
    server = Server(OURS)
    assert spoken(monkeypatch, server)
    assert server.labels == {}


def test_a_server_that_does_not_answer_makes_nobody_silent(monkeypatch: pytest.MonkeyPatch):
    class Restarts(Server):
        asked = 0

        async def read_flow_run(self, run_id: Any) -> Any:
            self.asked += 1
            if self.asked % 2:
                raise httpx.ConnectError("it restarts")
            return await super().read_flow_run(run_id)

    server = Restarts(OURS, OURS, OURS, Crashed())
    assert spoken(monkeypatch, server)
    assert server.labels == {COUNT: 3}


def test_no_signal_goes_to_a_process_that_is_not_there_yet(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(os, "kill", lambda pid, number: pytest.fail(f"a signal to {pid}"))  # 0 would be ourselves
    pool_worker._Started(anyio.TASK_STATUS_IGNORED).end()


def test_only_who_has_taken_a_run_calls_it_starting(monkeypatch: pytest.MonkeyPatch):
    proposed: list[State[Any]] = []

    async def propose(client: Any, state: State[Any], run_id: Any) -> State[Any]:
        proposed.append(state)
        return state

    async def take(taken: bool) -> dict[Any, Any]:
        async def pending(self: Any, flow_run: Any) -> bool:
            return taken

        async def submitting(self: Any, flow_run: Any) -> None:
            proposed.append(Pending(name="Submitting"))

        monkeypatch.setattr(ProcessWorker, "_propose_pending_state", pending)
        monkeypatch.setattr(ProcessWorker, "_propose_submitting_state", submitting)
        worker = PoolWorker(work_pool_name="gpu", name="here")
        worker._client = object()
        assert await worker._propose_pending_state(TAKEN) is taken
        await worker._propose_submitting_state(TAKEN)
        return worker._starting

    monkeypatch.setattr(pool_worker, "propose_state", propose)
    assert asyncio.run(take(False)) == {}
    starting = asyncio.run(take(True))
    assert [state.name for state in proposed] == ["Submitting", STARTING]
    assert starting == {TAKEN.id: proposed[1].id}


def test_no_automation_counts_the_event_that_starts_a_revival():
    """SQLite: its write meets that of the revival, is refused, and the event is dropped with all that follow it."""
    counting = [each.trigger for each in _automations() if each.trigger.posture == Posture.Proactive]
    assert counting
    assert not [each for each in counting if "prefect.flow-run.Crashed" in each.expect]


BACKGROUND = """
import asyncio, os, signal, sys
signal.signal(signal.SIGINT, signal.SIG_IGN)  # as a script's shell does for a command with an ampersand
from flows import pool_worker


class Waits:
    def __init__(self, **options):
        pass

    async def start(self, printer):
        os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.sleep(600)

pool_worker.PoolWorker = Waits
sys.argv[1:] = ["--pool", "gpu", "--name", "here"]
sys.exit(pool_worker.main())
"""


def test_a_worker_that_a_script_has_started_in_the_background_ends_when_it_is_told_to():
    done = subprocess.run(
        [sys.executable, "-c", BACKGROUND], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "Worker 'here' stopped!" in done.stdout
