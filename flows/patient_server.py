"""Prefect's server for `fairway up`: `python -m flows.patient_server --host H --port P`, as `prefect server start`.
A run's own server (`server.py`) has the same database.

With SQLite, Prefect 3.8 lets transactions begin as readers. One that reads first and writes afterwards fails at once,
whatever the time-out, when another one has written in between: "database is locked". Some twenty events a second, as at
the end of a run, are enough. Requests then get 503, which Prefect's own client repeats after two seconds, a page or
a program not at all; and an event that fails so five times is lost to the automations that find and revive dead runs.
Here a transaction takes the right to write when it begins, and those who come later wait in a queue, in front of the
database. SQLite itself has no queue, and who waits there holds one of fifteen connections. Worse, nobody else may touch
that connection meanwhile, but Python's garbage collector does when it finds an old cursor of it, in the thread of the
event loop: the loop then waits for the connection, the connection for a transaction of somebody else, and that one for
the loop, until SQLite gives up after a minute. So nobody waits there: statements outside of transactions queue up, too.
"""

from __future__ import annotations

import asyncio
import re
import runpy
import sys
from collections.abc import AsyncIterator
from contextlib import AbstractContextManager, asynccontextmanager, nullcontext
from typing import Any

from prefect.server.database.configurations import SQLITE_BEGIN_MODE, AioSqliteConfiguration
from prefect.server.database.dependencies import temporary_database_config
from prefect.server.utilities.database import get_dialect
from prefect.settings import PREFECT_API_DATABASE_CONNECTION_URL
from sqlalchemy import Connection, event
from sqlalchemy.engine import ExceptionContext
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, AsyncSessionTransaction

TURN_LIMIT_S = 60.0  # as long as SQLite itself waits: then it may say what is wrong
_WRITES = re.compile(r"\s*(INSERT|UPDATE|DELETE|REPLACE|CREATE|DROP|ALTER|VACUUM)\b", re.IGNORECASE)
_HAS_TURN = "fairway: this statement has the turn"


class PatientSqlite(AioSqliteConfiguration):
    """SQLite whose writers wait for each other. Who only reads waits for nobody."""

    def __init__(self, connection_url: str) -> None:
        super().__init__(connection_url)
        self._turns: dict[asyncio.AbstractEventLoop, asyncio.Lock] = {}
        self._writing: asyncio.Task[Any] | None = None

    async def engine(self) -> AsyncEngine:
        """The engine of this loop, whose statements queue up."""
        engine = await super().engine()
        if not event.contains(engine.sync_engine, "before_cursor_execute", self._before):
            event.listen(engine.sync_engine, "before_cursor_execute", self._before)
            event.listen(engine.sync_engine, "after_cursor_execute", self._after)
            event.listen(engine.sync_engine, "handle_error", self._failed)
        return engine

    @asynccontextmanager
    async def begin_transaction(
        self, session: AsyncSession, with_for_update: bool = False
    ) -> AsyncIterator[AsyncSessionTransaction]:
        """Begin as a writer; inside of another transaction of the same task as Prefect does, or it waits for itself."""
        writes = with_for_update or self._writing is not asyncio.current_task()
        mine = await self._take_turn()
        try:
            async with super().begin_transaction(session, with_for_update=writes) as transaction:
                await session.connection()  # begins it
                # A server's function may look something up in a session of its own meanwhile. That one must not ask
                # for the right to write: it would wait for the transaction that waits for it.
                others = SQLITE_BEGIN_MODE.set(None)
                try:
                    yield transaction
                finally:
                    SQLITE_BEGIN_MODE.reset(others)
        finally:
            self._end_turn(mine)

    async def _take_turn(self) -> asyncio.Lock | None:
        """Wait for those who came first; what to give back. Whoever has the turn does not wait for himself."""
        task = asyncio.current_task()
        if self._writing is not None and self._writing is task:
            return None
        turn = self._turns.setdefault(asyncio.get_running_loop(), asyncio.Lock())
        try:
            async with asyncio.timeout(TURN_LIMIT_S):
                await turn.acquire()
        except TimeoutError:
            return None
        self._writing = task
        return turn

    def _end_turn(self, turn: asyncio.Lock | None) -> None:
        if turn is not None:
            self._writing = None
            turn.release()

    def _before(self, connection: Connection, _cursor: object, statement: str, *what: Any) -> None:
        """A statement that writes: outside of a transaction SQLite takes and gives back the right to write with it."""
        context = what[1]
        writes = context.isinsert or context.isupdate or context.isdelete or context.isddl or _WRITES.match(statement)
        adapted: Any = connection.connection.dbapi_connection
        if writes and not adapted.driver_connection.in_transaction:
            connection.info[_HAS_TURN] = adapted.run_async(lambda _: self._take_turn())

    def _after(self, connection: Connection, *_: object) -> None:
        self._end_turn(connection.info.pop(_HAS_TURN, None))

    def _failed(self, error: ExceptionContext) -> None:
        if error.connection is not None:
            self._after(error.connection)


def patient_database() -> AbstractContextManager[object]:
    """During the body this process' server has such a SQLite; PostgreSQL needs none of this."""
    url = PREFECT_API_DATABASE_CONNECTION_URL.value()
    return temporary_database_config(PatientSqlite(url)) if get_dialect(url).name == "sqlite" else nullcontext()


if __name__ == "__main__":
    sys.argv = ["prefect", "server", "start", *sys.argv[1:]]
    with patient_database():
        runpy.run_module("prefect", run_name="__main__", alter_sys=True)
