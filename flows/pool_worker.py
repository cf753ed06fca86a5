"""Prefect's process worker, without two faults (3.8) that meet runs which start again.

    python -m flows.pool_worker --pool gpu --name here --limit 1

Somebody presses "retry" on the page, or an automation revives a run, before the worker has seen the end of the former
process: Prefect's worker then asks its limit for a second slot in the name of the same run, which raises and ends it.
This one leaves the run where it is until its slot is free; the former process finds out (`vigil.py`) and goes.

And when a run's process dies, Prefect's worker says so twice, half a second apart. A revival that comes between the two
is undone by the second. This one says it once.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import warnings
from typing import Any

from prefect.logging.configuration import setup_logging
from prefect.settings import get_current_settings
from prefect.utilities.processutils import setup_signal_handlers_worker
from prefect.workers.process import ProcessWorker, ProcessWorkerResult

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

        async def run(self, *given: Any, **named: Any) -> ProcessWorkerResult:
            """Run until the process has ended; how it ended has been told by then, so nothing is left to tell."""
            ended = await super().run(*given, **named)
            return ProcessWorkerResult(identifier=ended.identifier, status_code=0)


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
    try:
        await worker.start(printer=tell)
    except asyncio.CancelledError:
        tell(f"Worker {name!r} stopped!")


def tell(text: str) -> None:
    """A line for whoever started the worker."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def main() -> int:
    """A worker: SIGINT or SIGTERM lets no new run start and waits for those that run; once more ends it at once."""
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
