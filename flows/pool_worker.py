"""Prefect's process worker, without three faults (3.8) that cost work, and with a voice.

    python -m flows.pool_worker --pool gpu --name here --limit 1

Somebody presses "retry" on the page, or an automation revives a run, before the worker has seen the end of the former
process: Prefect's worker then asks its limit for a second slot in the name of the same run, which raises and ends it.
This one leaves the run where it is until its slot is free; the former process finds out (`vigil.py`) and goes.

And when a run's process dies, Prefect's worker says so twice, half a second apart. A revival that comes between the two
is undone by the second. This one says it once.

And Prefect's worker that is told to stop ends its runs by SIGKILL. This one hands SIGTERM on, by which they write their
checkpoints, and waits for them: in a container all processes end with the first one, and that is the worker.

A run that a worker has taken says nothing until its process has imported Prefect and our code, which may take minutes
on a cold disk. This one speaks for it (`signs.py`), so that silence means that the worker is gone, and not that it is
slow. A process that has not begun after five minutes, or whose run has been ended by then, is ended.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import signal
import sys
import time
import warnings
from collections.abc import Callable
from types import FrameType
from typing import Any
from uuid import UUID

import anyio
import anyio.abc
import httpx
from prefect.client.schemas.objects import State
from prefect.exceptions import Abort, PrefectException
from prefect.logging.configuration import setup_logging
from prefect.settings import get_current_settings
from prefect.states import Pending
from prefect.utilities.engine import propose_state
from prefect.utilities.processutils import setup_signal_handlers_worker
from prefect.workers.process import ProcessWorker, ProcessWorkerResult

from flows.signs import BEAT_EVERY_S, COUNT, START_LIMIT_S, STARTING, WORKER

RUNS: set[int] = set()  # processes of the runs that go on


class _Started(anyio.abc.TaskStatus[int]):
    """Tells Prefect which process a run has, and notes it."""

    told_to_stop = False  # the worker: a run that starts in that moment ends at once

    def __init__(self, status: anyio.abc.TaskStatus[int]) -> None:
        self.status, self.pid = status, 0

    def started(self, value: int | None = None) -> None:
        """It has this one."""
        self.pid = value or 0
        RUNS.add(self.pid)
        self.status.started(self.pid)
        if _Started.told_to_stop:
            self.end()

    def end(self) -> None:
        """SIGTERM, if there is one."""
        if self.pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGTERM)


with warnings.catch_warnings():  # it takes the place of Prefect's own in this process, which is meant
    warnings.simplefilter("ignore", UserWarning)

    class PoolWorker(ProcessWorker):
        """One machine's worker of one pool."""

        type = "process"

        def __init__(self, **options: Any) -> None:
            super().__init__(**options)
            self._starting: dict[UUID, UUID] = {}  # run -> the state that says so

        async def _submit_scheduled_flow_runs(self, flow_run_response: list[Any]) -> list[Any]:
            """Start what is due, but for runs that hold a slot of this worker's limit."""
            held = set(self.limiter.statistics().borrowers) if self._limiter is not None else set()
            free = [each for each in flow_run_response if each.flow_run.id not in held]
            return await super()._submit_scheduled_flow_runs(free)

        async def _propose_pending_state(self, flow_run: Any) -> bool:
            """Take a run, which of several workers one can, and say in the next breath that it is started."""
            taken = await super()._propose_pending_state(flow_run)
            if taken:
                starting: State[Any] = Pending(name=STARTING, message=f"worker {self.name} starts its process")
                try:
                    self._starting[flow_run.id] = (await propose_state(self.client, starting, flow_run.id)).id
                except (Abort, httpx.HTTPError, PrefectException):
                    self._logger.warning("Could not say that run %s is being started", flow_run.id)
            return taken

        async def _propose_submitting_state(self, flow_run: Any) -> None:
            """Prefect's name for it, which would take the place of ours."""
            if flow_run.id not in self._starting:
                await super()._propose_submitting_state(flow_run)

        async def run(
            self,
            flow_run: Any,
            configuration: Any,
            task_status: anyio.abc.TaskStatus[int] | None = None,
        ) -> ProcessWorkerResult:
            """Run until the process has ended; how it ended has been told by then, so nothing is left to tell."""
            noted = _Started(task_status or anyio.TASK_STATUS_IGNORED)
            configuration.env[WORKER] = str(os.getpid())
            voice = asyncio.create_task(self._speak_for(flow_run, noted))
            try:
                with anyio.CancelScope(shield=True):  # a process that is told to end gets the time for it
                    await super().run(flow_run, configuration, noted)
            finally:
                voice.cancel()
                RUNS.discard(noted.pid)
                self._starting.pop(flow_run.id, None)
            return ProcessWorkerResult(identifier=str(noted.pid), status_code=0)

        async def _speak_for(self, run: Any, process: _Started) -> None:
            """Count, until the run speaks for itself. A start that nobody waits for any more, or too long, ends."""
            own, started_s, count = self._starting.get(run.id), time.monotonic(), 0
            while own is not None:
                await asyncio.sleep(BEAT_EVERY_S)
                try:
                    seen = await self.client.read_flow_run(run.id)
                    if seen.run_count > run.run_count or seen.state is None or seen.state.is_cancelling():
                        return  # it has begun; or it is cancelled, which Prefect sees to
                    if seen.state.id != own or time.monotonic() - started_s > START_LIMIT_S:
                        process.end()
                        return
                    count += 1
                    await self.client.update_flow_run_labels(run.id, {COUNT: count})
                except (httpx.HTTPError, PrefectException):
                    continue  # whoever waits cannot ask either


def hand_on(former: Callable[[int, FrameType | None], Any]) -> Callable[[int, FrameType | None], None]:
    """A handler that tells the runs to end, and then does what the former one does."""

    def hear(number: int, frame: FrameType | None) -> None:
        _Started.told_to_stop = True
        for pid in RUNS:
            try:
                os.kill(pid, signal.SIGTERM)
            except ProcessLookupError:
                continue
        former(number, frame)

    return hear


async def work(pool: str, name: str, limit: int | None) -> None:
    """Take runs of the pool until a signal comes."""
    settings = get_current_settings().worker
    worker = PoolWorker(
        work_pool_name=pool,
        name=name,
        limit=limit,
        prefetch_seconds=settings.prefetch_seconds,
        heartbeat_interval_seconds=int(settings.heartbeat_seconds),
    )
    setup_signal_handlers_worker(os.getpid(), f"the worker {name}", tell)  # here, so that it finds asyncio's own
    for number in (signal.SIGTERM, signal.SIGINT):  # the first of each; the second ends us at once
        former = signal.getsignal(number)
        if callable(former):
            signal.signal(number, hand_on(former))
    try:
        await worker.start(printer=tell)
    except asyncio.CancelledError:
        tell(f"Worker {name!r} stopped!")


def tell(text: str) -> None:
    """A line for whoever started the worker."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def main() -> int:
    """A worker: SIGINT or SIGTERM ends it when its runs have written their checkpoints; once more ends it at once."""
    parser = argparse.ArgumentParser(prog="flows.pool_worker")
    parser.add_argument("--pool", required=True)
    parser.add_argument("--name", required=True)
    parser.add_argument("--limit", type=int, default=None)
    asked = parser.parse_args()
    setup_logging()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it: SIGTERM ends in it
    asyncio.run(work(asked.pool, asked.name, asked.limit))
    return 0


if __name__ == "__main__":
    sys.exit(main())
