"""Prefect's server for `fairway up`: `python -m flows.patient_server --host H --port P`, as `prefect server start`.

With SQLite, Prefect 3.8 lets transactions begin as readers. One that reads first and writes afterwards fails at once,
whatever the time-out, when another one has written in between: "database is locked". Some twenty events a second, as at
the end of a run, are enough. Requests then get 503, which Prefect's own client repeats after two seconds, a page or
a program not at all; and an event that fails so five times is lost to the automations that find and revive dead runs.
Here a transaction takes the right to write when it begins, and whoever comes second waits for it, as SQLite can.
"""

from __future__ import annotations

import runpy
import sys
from collections.abc import AsyncIterator
from contextlib import AbstractContextManager, asynccontextmanager, nullcontext

from prefect.server.database.configurations import AioSqliteConfiguration
from prefect.server.database.dependencies import temporary_database_config
from prefect.server.utilities.database import get_dialect
from prefect.settings import PREFECT_API_DATABASE_CONNECTION_URL
from sqlalchemy.ext.asyncio import AsyncSession, AsyncSessionTransaction


class PatientSqlite(AioSqliteConfiguration):
    """SQLite whose transactions wait for each other. Reads outside of one stay as they are and wait for nobody."""

    @asynccontextmanager
    async def begin_transaction(
        self, session: AsyncSession, with_for_update: bool = False
    ) -> AsyncIterator[AsyncSessionTransaction]:
        """Begin as a writer, always."""
        async with super().begin_transaction(session, with_for_update=True) as transaction:
            yield transaction


def patient_database() -> AbstractContextManager[object]:
    """During the body this process' server has such a SQLite; PostgreSQL needs none of this."""
    url = PREFECT_API_DATABASE_CONNECTION_URL.value()
    return temporary_database_config(PatientSqlite(url)) if get_dialect(url).name == "sqlite" else nullcontext()


if __name__ == "__main__":
    sys.argv = ["prefect", "server", "start", *sys.argv[1:]]
    with patient_database():
        runpy.run_module("prefect", run_name="__main__", alter_sys=True)
