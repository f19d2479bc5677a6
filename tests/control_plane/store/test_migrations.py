"""Migrations: from nothing to the tables that the queries expect, once, and never backwards."""

from __future__ import annotations

import asyncio
import sqlite3
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import Connection, Engine, create_engine, event

from control_plane.store import StoreError, migrations, open_store
from control_plane.store.schema import metadata
from grpc_runtime.sql.migrations import upgrade
from tests.control_plane.store.helpers import environment, python


def engine_of(path: Path | str) -> Engine:
    engine = create_engine(f"sqlite:///{path}", connect_args={"isolation_level": None})
    event.listen(engine, "begin", lambda c: c.exec_driver_sql("BEGIN IMMEDIATE"))
    return engine


@pytest.fixture
def connection(tmp_path: Path) -> Iterator[Connection]:
    engine = engine_of(tmp_path / "x.db")
    with engine.begin() as opened:
        yield opened
    engine.dispose()


def tables(connection: Connection) -> dict[str, str]:
    rows = connection.exec_driver_sql("SELECT name, sql FROM sqlite_schema WHERE sql IS NOT NULL")
    return {name: " ".join(sql.split()) for name, sql in rows if name != "alembic_version"}


def test_migrations_make_what_the_queries_expect(connection: Connection, tmp_path: Path) -> None:
    upgrade(connection, migrations, "x.db")
    assert compare_metadata(MigrationContext.configure(connection), metadata) == []
    # That comparison overlooks conditions of indexes and tables without row ids.
    engine = engine_of(tmp_path / "expected.db")
    with engine.begin() as expected:
        metadata.create_all(expected)
        assert tables(connection) == tables(expected)
    engine.dispose()


def test_a_second_run_changes_nothing(connection: Connection) -> None:
    upgrade(connection, migrations, "x.db")
    before = tables(connection)
    connection.exec_driver_sql("INSERT INTO runs VALUES (1, 1, 'i', 0, 0)")
    upgrade(connection, migrations, "x.db")
    assert tables(connection) == before
    assert connection.exec_driver_sql("SELECT count(*) FROM runs").scalar_one() == 1


def test_a_migration_that_is_interrupted_leaves_nothing(tmp_path: Path) -> None:
    engine = engine_of(tmp_path / "x.db")
    with engine.connect() as connection:
        interrupted = connection.begin()
        upgrade(connection, migrations, "x.db")
        interrupted.rollback()
    with engine.begin() as connection:
        assert tables(connection) == {}
    engine.dispose()


async def test_a_newer_schema_is_refused_with_both_names(tmp_path: Path) -> None:
    path = tmp_path / "x.db"
    await (await open_store(path)).close()
    with closing(sqlite3.connect(path)) as newer, newer:
        newer.execute("UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(StoreError, match=r"has schema 9999, but .* up to 0001; run the newer"):
        await open_store(path)
    # Left as it was, and closed: the right version can have it.
    with closing(sqlite3.connect(path)) as newer, newer:
        newer.execute("UPDATE alembic_version SET version_num = '0001'")
    await (await open_store(path)).close()


async def test_a_database_of_another_program_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "bookmarks.db"
    with closing(sqlite3.connect(path)) as theirs, theirs:
        theirs.execute("CREATE TABLE bookmarks (url TEXT)")
    with pytest.raises(StoreError, match=r"belongs to another program \(its tables: bookmarks\)"):
        await open_store(path)
    with closing(sqlite3.connect(path)) as theirs:
        names = theirs.execute("SELECT name FROM sqlite_schema").fetchall()
    assert names == [("bookmarks",)]


def test_concurrent_upgrades_run_one_after_the_other(tmp_path: Path) -> None:
    path = tmp_path / "x.db"
    with closing(sqlite3.connect(path)) as first:
        first.execute("PRAGMA journal_mode = WAL")

    def up_to_date(_: int) -> dict[str, str]:
        engine = engine_of(path)
        with engine.begin() as connection:
            upgrade(connection, migrations, str(path))
            made = tables(connection)
        engine.dispose()
        return made

    with ThreadPoolExecutor(4) as pool:
        made = list(pool.map(up_to_date, range(4)))
    assert made[0]
    assert made == [made[0]] * 4


OPEN_ONCE = """
import asyncio, sys
from grpc_runtime.logging import configure_logging
from control_plane.store import StoreError, open_store

async def main():
    try:
        store = await open_store(sys.argv[1])
    except StoreError as error:
        print(error)
        return
    print("open", flush=True)
    sys.stdin.read()
    await store.close()

configure_logging()
asyncio.run(main())
"""


def test_of_processes_that_start_at_once_one_gets_the_database(tmp_path: Path) -> None:
    path = tmp_path / "x.db"
    children = [
        subprocess.Popen(
            python(OPEN_ONCE, path),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment(),
        )
        for _ in range(3)
    ]
    # All have tried before the winner is let go.
    said = []
    for child in children:
        assert child.stdout is not None
        said.append(child.stdout.readline())
    for child in children:
        child.communicate(timeout=30)
        assert child.returncode == 0
    assert sorted(line == "open\n" for line in said) == [False, False, True]
    assert sum("another control plane (process" in line for line in said) == 2

    async def again() -> None:
        await (await open_store(path)).close()

    asyncio.run(again())
