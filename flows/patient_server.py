"""Prefect's server for `fairway up`: `python -m flows.patient_server --host H --port P`, as `prefect server start`.

With SQLite, Prefect 3.8 lets transactions begin as readers. One that reads first and writes afterwards fails at once,
whatever the time-out, when another one has written in between: "database is locked". Some twenty events a second, as at
the end of a run, are enough. Requests then get 503, which Prefect's own client repeats after two seconds, a page or
a program not at all; and an event that fails so five times is lost to the automations that find and revive dead runs.
Here a transaction takes the right to write when it begins, and those who come later wait in a queue, in front of the
database: SQLite itself has no queue, and each who waits there holds one of fifteen connections.
"""

from __future__ import annotations

import asyncio
import runpy
import sys
from collections.abc import AsyncIterator
from contextlib import AbstractContextManager, asynccontextmanager, nullcontext
from typing import Any

from prefect.server.database.configurations import SQLITE_BEGIN_MODE, AioSqliteConfiguration
from prefect.server.database.dependencies import temporary_database_config
from prefect.server.utilities.database import get_dialect
from prefect.settings import PREFECT_API_DATABASE_CONNECTION_URL
from sqlalchemy.ext.asyncio import AsyncSession, AsyncSessionTransaction

TURN_LIMIT_S = 60.0  # as long as SQLite itself waits: then it may say what is wrong


class PatientSqlite(AioSqliteConfiguration):
    """SQLite whose transactions wait for each other. Reads outside of one stay as they are and wait for nobody."""

    def __init__(self, connection_url: str) -> None:
        super().__init__(connection_url)
        self._turns: dict[asyncio.AbstractEventLoop, asyncio.Lock] = {}
        self._writing: asyncio.Task[Any] | None = None

    @asynccontextmanager
    async def begin_transaction(
        self, session: AsyncSession, with_for_update: bool = False
    ) -> AsyncIterator[AsyncSessionTransaction]:
        """Begin as a writer, always."""
        async with self._turn(), super().begin_transaction(session, with_for_update=True) as transaction:
            await session.connection()  # begins it
            # A server's function may look something up in a session of its own meanwhile. That one must not ask for
            # the right to write: it would wait for the transaction that waits for it.
            others = SQLITE_BEGIN_MODE.set("DEFERRED")
            try:
                yield transaction
            finally:
                SQLITE_BEGIN_MODE.reset(others)

    @asynccontextmanager
    async def _turn(self) -> AsyncIterator[None]:
        """Wait for those who came first; whoever has the turn does not wait for himself."""
        task = asyncio.current_task()
        if self._writing is not None and self._writing is task:
            yield
            return
        lock = self._turns.setdefault(asyncio.get_running_loop(), asyncio.Lock())
        try:
            await asyncio.wait_for(lock.acquire(), TURN_LIMIT_S)
        except TimeoutError:
            yield
            return
        self._writing = task
        try:
            yield
        finally:
            self._writing = None
            lock.release()


def patient_database() -> AbstractContextManager[object]:
    """During the body this process' server has such a SQLite; PostgreSQL needs none of this."""
    url = PREFECT_API_DATABASE_CONNECTION_URL.value()
    return temporary_database_config(PatientSqlite(url)) if get_dialect(url).name == "sqlite" else nullcontext()


if __name__ == "__main__":
    sys.argv = ["prefect", "server", "start", *sys.argv[1:]]
    with patient_database():
        runpy.run_module("prefect", run_name="__main__", alter_sys=True)
