"""What `up` puts in front of SQLite: transactions that wait for each other instead of failing."""

from __future__ import annotations

import asyncio
from pathlib import Path

import sqlalchemy as sa
from prefect.server.database.configurations import AioSqliteConfiguration
from prefect.server.database.dependencies import MODELS_DEPENDENCIES
from prefect.settings import PREFECT_API_DATABASE_CONNECTION_URL, temporary_settings

from flows.patient_server import PatientSqlite, patient_database


async def count_twice(database: AioSqliteConfiguration) -> int:
    """Two transactions read a number and write one more, side by side; the number then."""
    engine = await database.engine()
    async with engine.begin() as connection:
        await connection.execute(sa.text("CREATE TABLE counter (n INTEGER)"))
        await connection.execute(sa.text("INSERT INTO counter VALUES (0)"))

    async def add() -> None:
        async with await database.session(engine) as session, database.begin_transaction(session):
            read = (await session.execute(sa.text("SELECT n FROM counter"))).scalar_one()
            await asyncio.sleep(0.1)
            await session.execute(sa.text("UPDATE counter SET n = :n"), {"n": read + 1})

    await asyncio.gather(add(), add())
    async with engine.connect() as connection:
        found = (await connection.execute(sa.text("SELECT n FROM counter"))).scalar_one()
    await engine.dispose()
    return found


def test_transactions_that_read_and_then_write_wait_for_each_other(tmp_path: Path):
    database = PatientSqlite(f"sqlite+aiosqlite:///{tmp_path / 'counter.db'}")
    assert asyncio.run(count_twice(database)) == 2


async def look_up_inside(database: AioSqliteConfiguration) -> int:
    """A transaction that has written waits for a session of its own that reads; what the other one saw."""
    engine = await database.engine()
    async with engine.begin() as connection:
        await connection.execute(sa.text("CREATE TABLE counter (n INTEGER)"))
        await connection.execute(sa.text("INSERT INTO counter VALUES (0)"))
    async with await database.session(engine) as session, database.begin_transaction(session):
        await session.execute(sa.text("UPDATE counter SET n = 1"))
        async with await database.session(engine) as other:
            found = (await other.execute(sa.text("SELECT n FROM counter"))).scalar_one()
    await engine.dispose()
    return found


def test_a_transaction_does_not_wait_for_who_looks_something_up_in_it(tmp_path: Path):
    """As Prefect does when a work queue is paused; the page would hang for a minute, and all others with it."""
    database = PatientSqlite(f"sqlite+aiosqlite:///{tmp_path / 'counter.db'}")
    assert asyncio.run(asyncio.wait_for(look_up_inside(database), 20)) == 0


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


def test_only_a_server_on_sqlite_gets_it(tmp_path: Path):
    urls = {
        f"sqlite+aiosqlite:///{tmp_path / 'prefect.db'}": PatientSqlite,
        "postgresql+asyncpg://somebody@nowhere/prefect": type(None),
    }
    for url, kind in urls.items():
        with temporary_settings({PREFECT_API_DATABASE_CONNECTION_URL: url}), patient_database():
            assert type(MODELS_DEPENDENCIES["database_config"]) is kind
