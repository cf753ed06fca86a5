"""Our worker, without a server: what it takes and what it says."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import anyio
import pytest
from prefect.events.schemas.automations import Posture
from prefect.workers.process import ProcessWorker, ProcessWorkerResult

from flows.deploy import _automations
from flows.pool_worker import PoolWorker

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
    ended = asyncio.run(worker.run(None, None))
    assert (ended.status_code, ended.identifier) == (0, "17")


def test_no_automation_counts_the_event_that_starts_a_revival():
    """SQLite: its write meets that of the revival, is refused, and the event is dropped with all that follow it."""
    counting = [each.trigger for each in _automations() if each.trigger.posture == Posture.Proactive]
    assert counting
    assert not [each for each in counting if "prefect.flow-run.Crashed" in each.expect]
