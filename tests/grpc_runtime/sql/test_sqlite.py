"""A database in an SQLite file: the contract, durability, and which files are taken."""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import stat
import subprocess
from contextlib import closing
from pathlib import Path

import pytest

from grpc_runtime.sql import Database, DatabaseOpenError, DatabaseUnavailableError
from grpc_runtime.sql.sqlite import SqliteDatabase
from tests.grpc_runtime.sql import notes as migrations
from tests.grpc_runtime.sql.database_contract import DatabaseContract
from tests.grpc_runtime.sql.tables import add, environment, names, open_notes, python, run_sql


@pytest.fixture
def address(path: Path) -> str:
    return f"sqlite:///{path}"


class TestSqlite(DatabaseContract):
    """The contract that every database keeps."""

    def test_of_processes_that_start_at_once_one_gets_the_database(self, address: str) -> None:
        said = self.starting_together(address)
        assert sorted(line == "open\n" for line in said) == [False, False, True]
        assert sum("another notebook (process" in line for line in said) == 2


async def names_in(path: Path) -> list[str]:
    database = await open_notes(path)
    try:
        return await database.read(names)
    finally:
        await database.close()


WRITE_AND_SAY = """
import asyncio, sys
from grpc_runtime.logging import configure_logging
from tests.grpc_runtime.sql.tables import add, open_notes

async def main():
    database = await open_notes(sys.argv[1])
    for number in range(1_000_000):
        await database.write(add(f"{number:06}"))
        print(number, flush=True)

configure_logging()
asyncio.run(main())
"""


def test_what_was_answered_survives_a_kill(path: Path) -> None:
    with subprocess.Popen(
        python(WRITE_AND_SAY, path), stdout=subprocess.PIPE, text=True, env=environment()
    ) as child:
        assert child.stdout is not None
        for _ in range(50):
            child.stdout.readline()
        os.kill(child.pid, signal.SIGKILL)
        # Whatever it said up to its death was on disk before.
        rest = child.stdout.read().split()
    last = int(rest[-1]) if rest else 49
    found = asyncio.run(names_in(path))
    assert len(found) in (last + 1, last + 2)
    assert found == [f"{number:06}" for number in range(len(found))]


OPEN_AND_WAIT = """
import asyncio, sys
from grpc_runtime.logging import configure_logging
from tests.grpc_runtime.sql.tables import open_notes

async def main():
    database = await open_notes(sys.argv[1])
    print("open", flush=True)
    sys.stdin.read()
    await database.close()

configure_logging()
asyncio.run(main())
"""


def test_a_second_process_is_refused_and_succeeds_later(path: Path) -> None:
    with subprocess.Popen(
        python(OPEN_AND_WAIT, path),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment(),
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "open\n"
        link = path.with_name("link.db")
        link.symlink_to(path)
        for name in (path, link):
            with pytest.raises(
                DatabaseOpenError, match=rf"another notebook \(process {child.pid}\) uses it; stop"
            ):
                asyncio.run(names_in(name))
        child.communicate(timeout=30)
    assert child.returncode == 0
    assert asyncio.run(names_in(path)) == []


async def test_the_file_is_for_its_owner_alone(path: Path, database: Database) -> None:
    await database.write(add("a"))
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    files = {p.name: stat.S_IMODE(p.stat().st_mode) for p in path.parent.iterdir()}
    expected = ["notes.db", "notes.db-shm", "notes.db-wal", "notes.db.lock"]
    assert files == dict.fromkeys(expected, 0o600)


async def test_commits_wait_for_the_disk(database: Database) -> None:
    assert database.dialect == "sqlite"
    assert await run_sql(database, "PRAGMA journal_mode") == [("wal",)]
    assert await run_sql(database, "PRAGMA synchronous") == [(2,)]
    assert await run_sql(database, "PRAGMA foreign_keys") == [(1,)]


async def test_after_close_one_plain_file_holds_everything(path: Path, database: Database) -> None:
    await database.write(add("a"))
    await database.close()
    assert {p.name for p in path.parent.iterdir()} == {"notes.db", "notes.db.lock"}
    with closing(sqlite3.connect(path)) as plain:
        assert plain.execute("SELECT name FROM notes").fetchall() == [("a",)]


async def test_urls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for url in ("sqlite:///relative.db", f"sqlite:///{tmp_path}/absolute.db", "plain.db"):
        await (await open_notes(url)).close()
    found = await asyncio.to_thread(lambda: {path.name for path in tmp_path.glob("*.db")})
    assert found == {"relative.db", "absolute.db", "plain.db"}


async def test_a_file_that_is_no_database_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("dear diary, " * 1_000)
    with pytest.raises(DatabaseOpenError, match="is no SQLite database; choose another one"):
        await open_notes(path)
    assert path.read_text().startswith("dear diary")


async def test_a_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DatabaseOpenError, match=r"Is a directory; check the path"):
        await open_notes(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(DatabaseOpenError, match=r"can not open the database .*check the path"):
        await open_notes(tmp_path / "file" / "x.db")


async def test_a_locked_database_is_refused(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("grpc_runtime.sql.sqlite._WRITER", ("PRAGMA busy_timeout = 10",))
    path.parent.mkdir()
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(DatabaseOpenError, match="another process keeps the database locked"):
            await open_notes(path)


def test_a_database_can_be_opened_without_a_loop(path: Path) -> None:
    database = SqliteDatabase(path, migrations, "notebook")
    asyncio.run(database.close())


# Full, read-only, locked and damaged files: refused with what to do, and recovered from.


def set_on_writer(database: Database, pragma: str) -> None:
    """Sets something on the writer's connection while the writer is idle."""
    assert isinstance(database, SqliteDatabase)
    driver = database._writer._connection.connection.driver_connection
    assert driver is not None
    driver.execute(f"PRAGMA {pragma}")


async def test_a_full_disk_refuses_who_fills_it_and_recovers(database: Database) -> None:
    [(pages,)] = await run_sql(database, "PRAGMA page_count")
    set_on_writer(database, f"max_page_count = {pages + 4}")
    small = [asyncio.ensure_future(database.write(add(f"small-{n}"))) for n in range(5)]
    large = asyncio.ensure_future(database.write(add("x" * 100_000)))
    more = [asyncio.ensure_future(database.write(add(f"more-{n}"))) for n in range(5)]
    await asyncio.wait([*small, large, *more])
    error = large.exception()
    assert isinstance(error, DatabaseUnavailableError)
    assert "the disk that holds the database is full; free some space" in str(error)
    assert error.retry_delay
    # It takes nobody along.
    assert [task.exception() for task in (*small, *more)] == [None] * 10
    set_on_writer(database, "max_page_count = 1000000")
    await database.write(add("x" * 100_000))
    assert len(await database.read(names)) == 11


async def test_a_read_only_file_refuses_and_recovers(database: Database) -> None:
    set_on_writer(database, "query_only = ON")
    with pytest.raises(
        DatabaseUnavailableError, match="can not be written to; check the permissions"
    ):
        await database.write(add("a"))
    set_on_writer(database, "query_only = OFF")
    await database.write(add("a"))


async def test_a_locked_file_refuses_everybody_at_once_and_recovers(
    path: Path, database: Database
) -> None:
    set_on_writer(database, "busy_timeout = 50")
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        results = await asyncio.gather(
            *(database.write(add(f"{n}")) for n in range(20)), return_exceptions=True
        )
        for result in results:
            assert isinstance(result, DatabaseUnavailableError)
            assert "another process keeps the database locked" in str(result)
        # Readers are not held up by a writer.
        assert await database.read(names) == []
        other.execute("ROLLBACK")
    await database.write(add("a"))


async def test_a_damaged_file_is_said_to_be_damaged(
    path: Path, address: str, database: Database
) -> None:
    await database.write(lambda connection: [add(f"{n:0100}")(connection) for n in range(5_000)])
    await database.close()
    with path.open("r+b") as file:
        file.seek(8 * 4096)
        file.write(os.urandom(100 * 4096))
    damaged = await open_notes(address)
    with pytest.raises(
        DatabaseUnavailableError, match="file is damaged; stop the server and restore"
    ) as caught:
        await damaged.read(
            lambda connection: connection.exec_driver_sql("SELECT * FROM notes").all()
        )
    assert caught.value.retry_delay is None
    await damaged.close()
