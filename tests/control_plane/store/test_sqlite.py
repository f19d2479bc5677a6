"""The store in an SQLite file: the contract, durability, and which files are taken."""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import stat
import subprocess
from pathlib import Path

import pytest

from control_plane.domain.errors import Refusal
from control_plane.services.ports import Store
from control_plane.store import StoreError, open_store
from control_plane.store.sqlite import SqliteStore
from tests.contract.store_contract import StoreContract
from tests.contract.store_helpers import add_job
from tests.control_plane.store.helpers import (
    environment,
    python,
    run_sql,
)
from tests.support.domain_values import job


class TestSqliteStore(StoreContract):
    """The contract that every store keeps."""


async def ids_in(path: Path) -> set[str]:
    store = await open_store(path)
    try:
        return {one.id for one in await store.read(lambda tx: tx.jobs(limit=100_000))}
    finally:
        await store.close()


WRITE_AND_SAY = """
import asyncio, sys
from control_plane.store import open_store
from tests.support.domain_values import job

async def main():
    store = await open_store(sys.argv[1])
    for number in range(1_000_000):
        await store.write(lambda tx: tx.insert_job(job(id=f"j{number}")))
        print(number, flush=True)

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
    found = asyncio.run(ids_in(path))
    assert {f"j{number}" for number in range(last + 1)} <= found
    assert len(found) <= last + 2


OPEN_AND_WAIT = """
import asyncio, sys
from control_plane.store import open_store

async def main():
    store = await open_store(sys.argv[1])
    print("open", flush=True)
    sys.stdin.read()
    await store.close()

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
            with pytest.raises(StoreError, match=rf"\(process {child.pid}\) uses it; stop that"):
                asyncio.run(ids_in(name))
        child.communicate(timeout=30)
    assert child.returncode == 0
    assert asyncio.run(ids_in(path)) == set()


async def test_the_file_is_for_its_owner_alone(path: Path, store: Store) -> None:
    await add_job(store)
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    files = {p.name: stat.S_IMODE(p.stat().st_mode) for p in path.parent.iterdir()}
    names = ["control.db", "control.db-shm", "control.db-wal", "control.db.lock"]
    assert files == dict.fromkeys(names, 0o600)


async def test_commits_wait_for_the_disk(store: Store) -> None:
    assert await run_sql(store, "PRAGMA journal_mode") == [("wal",)]
    assert await run_sql(store, "PRAGMA synchronous") == [(2,)]
    assert await run_sql(store, "PRAGMA foreign_keys") == [(1,)]


async def test_after_close_one_plain_file_holds_everything(path: Path, store: Store) -> None:
    await add_job(store)
    await store.close()
    assert {p.name for p in path.parent.iterdir()} == {"control.db", "control.db.lock"}
    with sqlite3.connect(path) as plain:
        assert plain.execute("SELECT id FROM jobs").fetchall() == [("j",)]
    plain.close()


async def test_reads_can_not_write(store: Store) -> None:
    with pytest.raises(Refusal, match="readonly"):
        await store.read(lambda tx: tx.insert_job(job()))
    assert await store.read(lambda tx: tx.job("j")) is None


# Which databases are taken


@pytest.mark.parametrize(
    "database",
    ["", ":memory:", "sqlite://", "sqlite:///", "sqlite:///:memory:", "file:x.db?mode=memory"],
)
async def test_a_database_that_is_no_file_is_refused(database: str) -> None:
    with pytest.raises(StoreError, match=r"allowed: the path of a file, or sqlite:///path"):
        await open_store(database)


async def test_another_kind_of_database_is_refused_without_showing_its_password() -> None:
    with pytest.raises(StoreError, match="SQLite only; got a postgresql://") as caught:
        await open_store("postgresql://me:secret@host/db")
    assert "secret" not in str(caught.value)


async def test_urls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for url in ("sqlite:///relative.db", f"sqlite:///{tmp_path}/absolute.db", "plain.db"):
        await (await open_store(url)).close()
    found = await asyncio.to_thread(lambda: {path.name for path in tmp_path.glob("*.db")})
    assert found == {"relative.db", "absolute.db", "plain.db"}


async def test_a_file_that_is_no_database_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("dear diary, " * 1_000)
    with pytest.raises(StoreError, match="is no SQLite database; choose another one"):
        await open_store(path)
    assert path.read_text().startswith("dear diary")


async def test_a_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"Is a directory; check the path"):
        await open_store(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match=r"can not open the database .*check the path"):
        await open_store(tmp_path / "file" / "x.db")


async def test_a_locked_database_is_refused(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("control_plane.store.sqlite._WRITER", ("PRAGMA busy_timeout = 10",))
    path.parent.mkdir()
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    with pytest.raises(StoreError, match="another process keeps the database locked"):
        await open_store(path)
    other.close()


def test_the_store_class_can_be_opened_without_a_loop(path: Path) -> None:
    store = SqliteStore(path)
    asyncio.run(store.close())
