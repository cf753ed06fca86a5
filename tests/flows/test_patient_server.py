"""What `up` puts in front of SQLite: transactions that wait for each other instead of failing."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path

import pytest
import sqlalchemy as sa
from prefect.server.database.configurations import AioSqliteConfiguration
from prefect.server.database.dependencies import MODELS_DEPENDENCIES
from prefect.settings import PREFECT_API_DATABASE_CONNECTION_URL, temporary_settings
from sqlalchemy.ext.asyncio import AsyncEngine

from flows.patient_server import PatientSqlite, patient_database


async def engine_with_counter(database: AioSqliteConfiguration, *numbers: int) -> AsyncEngine:
    """A database whose table `counter` has these numbers."""
    engine = await database.engine()
    async with engine.begin() as connection:
        await connection.execute(sa.text("CREATE TABLE counter (n INTEGER)"))
        for number in numbers:
            await connection.execute(sa.text("INSERT INTO counter VALUES (:n)"), {"n": number})
    return engine


async def end_with_sum(engine: AsyncEngine) -> int:
    """What its numbers come to; the engine is gone then."""
    async with engine.connect() as connection:
        found = (await connection.execute(sa.text("SELECT sum(n) FROM counter"))).scalar_one()
    await engine.dispose()
    return found


async def count_twice(database: AioSqliteConfiguration) -> int:
    """Two transactions read a number and write one more, side by side; the number then."""
    engine = await engine_with_counter(database, 0)

    async def add() -> None:
        async with await database.session(engine) as session, database.begin_transaction(session):
            read = (await session.execute(sa.text("SELECT n FROM counter"))).scalar_one()
            await asyncio.sleep(0.1)
            await session.execute(sa.text("UPDATE counter SET n = :n"), {"n": read + 1})

    await asyncio.gather(add(), add())
    return await end_with_sum(engine)


def test_transactions_that_read_and_then_write_wait_for_each_other(tmp_path: Path):
    database = PatientSqlite(f"sqlite+aiosqlite:///{tmp_path / 'counter.db'}")
    assert asyncio.run(count_twice(database)) == 2


async def look_up_inside(database: AioSqliteConfiguration, begins: bool) -> int:
    """A transaction that has written waits for a session of its own that reads, in a transaction if it `begins` one, as
    some of Prefect's functions do; what the other one saw.
    """
    engine = await engine_with_counter(database, 0)
    async with await database.session(engine) as session, database.begin_transaction(session):
        await session.execute(sa.text("UPDATE counter SET n = 1"))
        other = await database.session(engine)
        async with other, database.begin_transaction(other) if begins else contextlib.nullcontext():
            found = (await other.execute(sa.text("SELECT n FROM counter"))).scalar_one()
    await engine.dispose()
    return found


@pytest.mark.parametrize("begins", [False, True])
def test_a_transaction_does_not_wait_for_who_looks_something_up_in_it(tmp_path: Path, begins: bool):
    """As Prefect does when a work queue is paused; the page would hang for a minute, and all others with it."""
    database = PatientSqlite(f"sqlite+aiosqlite:///{tmp_path / 'counter.db'}")
    assert asyncio.run(asyncio.wait_for(look_up_inside(database, begins), 20)) == 0


async def order_of(database: AioSqliteConfiguration, writers: int) -> list[int]:
    """Who began to write as which, of those who asked one after the other."""
    engine = await database.engine()
    began: list[int] = []

    async def write(number: int) -> None:
        async with await database.session(engine) as session, database.begin_transaction(session):
            began.append(number)
            await asyncio.sleep(0.01)

    tasks = []
    for number in range(writers):
        tasks.append(asyncio.create_task(write(number)))
        await asyncio.sleep(0)
    await asyncio.gather(*tasks)
    await engine.dispose()
    return began


def test_more_writers_than_connections_have_their_turn_in_the_order_they_came(tmp_path: Path):
    database = PatientSqlite(f"sqlite+aiosqlite:///{tmp_path / 'counter.db'}")
    assert asyncio.run(order_of(database, 40)) == list(range(40))


async def write_after_a_cancelled(database: AioSqliteConfiguration, waiting: bool) -> int:
    """Somebody who writes without a transaction is cancelled, in the queue or at work; then somebody else writes."""
    engine = await engine_with_counter(database)
    many = "WITH RECURSIVE n(i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n LIMIT 3000000) SELECT i FROM n"

    async def write() -> None:
        async with engine.connect() as connection:
            await connection.execute(sa.text(f"INSERT INTO counter {many}"))

    async with contextlib.AsyncExitStack() as stack:
        session = await stack.enter_async_context(await database.session(engine))
        if waiting:
            await stack.enter_async_context(database.begin_transaction(session))
        cancelled = asyncio.create_task(write())
        await asyncio.sleep(0.3)
        assert not cancelled.done()
        cancelled.cancel()
        with pytest.raises(asyncio.CancelledError):
            await cancelled
    async with await database.session(engine) as session, database.begin_transaction(session):
        await session.execute(sa.text("DELETE FROM counter"))
        await session.execute(sa.text("INSERT INTO counter VALUES (7)"))
    return await end_with_sum(engine)


@pytest.mark.parametrize("waiting", [True, False])
def test_a_writer_who_is_cancelled_gives_its_turn_to_the_next(tmp_path: Path, waiting: bool):
    database = PatientSqlite(f"sqlite+aiosqlite:///{tmp_path / 'counter.db'}")
    assert asyncio.run(asyncio.wait_for(write_after_a_cancelled(database, waiting), 50)) == 7


def test_only_a_server_on_sqlite_gets_it(tmp_path: Path):
    urls = {
        f"sqlite+aiosqlite:///{tmp_path / 'prefect.db'}": PatientSqlite,
        "postgresql+asyncpg://somebody@nowhere/prefect": type(None),
    }
    for url, kind in urls.items():
        with temporary_settings({PREFECT_API_DATABASE_CONNECTION_URL: url}), patient_database():
            assert type(MODELS_DEPENDENCIES["database_config"]) is kind


async def write_beside(database: AioSqliteConfiguration) -> int:
    """While a transaction is open, somebody writes without one, and the collector ends a statement of theirs."""
    engine = await engine_with_counter(database)
    async with await database.session(engine) as other:
        raw = (await (await other.connection()).get_raw_connection()).driver_connection
        assert raw is not None
        await raw.execute("PRAGMA busy_timeout = 2000")
        forgotten = await raw.execute("SELECT 1 UNION SELECT 2")  # not read to its end
        async with await database.session(engine) as session, database.begin_transaction(session):
            await session.execute(sa.text("INSERT INTO counter VALUES (1)"))
            beside = asyncio.create_task(other.execute(sa.text("INSERT INTO counter VALUES (2)")))
            await asyncio.sleep(0.5)
            del forgotten  # if its connection were busy, this thread would wait, and so would our own commit
        await beside
    return await end_with_sum(engine)


def test_no_connection_is_ever_busy_waiting_for_a_transaction_which_the_event_loop_must_end(tmp_path: Path):
    """SQLite lets nobody touch a connection that waits, and Python's collector touches them all: for a minute the
    collector waited for a writer, the writer for a transaction, and the transaction for the collector.
    """
    database = PatientSqlite(f"sqlite+aiosqlite:///{tmp_path / 'counter.db'}")
    assert asyncio.run(write_beside(database)) == 3
