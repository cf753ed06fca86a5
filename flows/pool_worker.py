"""Prefect's process worker, without three faults (3.8) that cost work.

    python -m flows.pool_worker --pool gpu --name here --limit 1

Somebody presses "retry" on the page, or an automation revives a run, before the worker has seen the end of the former
process: Prefect's worker then asks its limit for a second slot in the name of the same run, which raises and ends it.
This one leaves the run where it is until its slot is free; the former process finds out (`vigil.py`) and goes.

And when a run's process dies, Prefect's worker says so twice, half a second apart. A revival that comes between the two
is undone by the second. This one says it once.

And Prefect's worker that is told to stop ends its runs by SIGKILL. This one hands SIGTERM on, by which they write their
checkpoints, and waits for them: in a container all processes end with the first one, and that is the worker.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sys
import warnings
from collections.abc import Callable
from types import FrameType
from typing import Any

import anyio
import anyio.abc
from prefect.logging.configuration import setup_logging
from prefect.settings import get_current_settings
from prefect.utilities.processutils import setup_signal_handlers_worker
from prefect.workers.process import ProcessWorker, ProcessWorkerResult

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
            os.kill(self.pid, signal.SIGTERM)


with warnings.catch_warnings():  # it takes the place of Prefect's own in this process, which is meant
    warnings.simplefilter("ignore", UserWarning)

    class PoolWorker(ProcessWorker):
        """One machine's worker of one pool."""

        type = "process"

        async def _submit_scheduled_flow_runs(self, flow_run_response: list[Any]) -> list[Any]:
            """Start what is due, but for runs that hold a slot of this worker's limit."""
            held = set(self.limiter.statistics().borrowers) if self._limiter is not None else set()
            free = [each for each in flow_run_response if each.flow_run.id not in held]
            return await super()._submit_scheduled_flow_runs(free)

        async def run(
            self,
            flow_run: Any,
            configuration: Any,
            task_status: anyio.abc.TaskStatus[int] | None = None,
        ) -> ProcessWorkerResult:
            """Run until the process has ended; how it ended has been told by then, so nothing is left to tell."""
            noted = _Started(task_status or anyio.TASK_STATUS_IGNORED)
            try:
                with anyio.CancelScope(shield=True):  # a process that is told to end gets the time for it
                    await super().run(flow_run, configuration, noted)
            finally:
                RUNS.discard(noted.pid)
            return ProcessWorkerResult(identifier=str(noted.pid), status_code=0)


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
    asyncio.run(work(asked.pool, asked.name, asked.limit))
    return 0


if __name__ == "__main__":
    sys.exit(main())
