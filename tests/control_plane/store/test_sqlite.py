"""The store in an SQLite file: the contract, and what is special about it."""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import stat
import subprocess
import sys
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection

from control_plane.domain.errors import Reason, Refusal
from control_plane.services.ports import Store, Transaction
from control_plane.store import StoreError, open_store
from control_plane.store.group_commit import MAX_GROUP, MAX_WAITING
from control_plane.store.sqlite import SqliteStore
from tests.contract.store_contract import StoreContract, WorkError, add_job, add_samples
from tests.support.domain_values import job
from tests.support.processes import ROOT


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "control.db"


@pytest.fixture
async def store(path: Path) -> AsyncIterator[Store]:
    opened = await open_store(path)
    yield opened
    await opened.close()


class TestSqliteStore(StoreContract):
    """The contract that every store keeps."""


def connection_of(tx: Transaction) -> Connection:
    connection = tx._connection  # type: ignore[attr-defined] # tests reach below the contract
    assert isinstance(connection, Connection)
    return connection


async def run_sql(store: Store, sql: str) -> list[tuple[Any, ...]]:
    """Runs SQL on the writer's connection."""
    return await store.write(
        lambda tx: [tuple(row) for row in connection_of(tx).exec_driver_sql(sql).all()]
    )


async def set_on_writer(store: Store, pragma: str) -> None:
    """Sets what can not be set within a transaction, or does not answer with rows."""

    def work(tx: Transaction) -> None:
        driver = connection_of(tx).connection.driver_connection
        assert driver is not None
        driver.execute(f"PRAGMA {pragma}")

    await store.write(work)


def python(code: str, *arguments: object) -> list[str]:
    return [sys.executable, "-W", "error", "-c", code, *map(str, arguments)]


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'protos'}"}


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


async def test_what_was_answered_survives_a_kill(path: Path) -> None:
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
    store = await open_store(path)
    found = {one.id for one in await store.read(lambda tx: tx.jobs(limit=100_000))}
    await store.close()
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


async def test_a_second_process_is_refused_and_succeeds_later(path: Path) -> None:
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
                await open_store(name)
        child.communicate(timeout=30)
    assert child.returncode == 0
    store = await open_store(path)
    await store.close()


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
    assert {p.name for p in tmp_path.glob("*.db")} == {"relative.db", "absolute.db", "plain.db"}


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


# Faults while it runs


async def test_a_full_disk_refuses_and_recovers(store: Store) -> None:
    of = await add_job(store)
    [(pages,)] = await run_sql(store, "PRAGMA page_count")
    await set_on_writer(store, f"max_page_count = {pages + 4}")
    with pytest.raises(Refusal, match="disk that holds the database is full; free some") as caught:
        await add_samples(store, of, range(100_000))
    assert caught.value.reason is Reason.STORE_UNAVAILABLE
    assert caught.value.retry_delay
    # What still fits goes on, reads too; and nothing of the rest is there.
    await store.write(lambda tx: tx.delete_job(of))
    assert await store.read(lambda tx: tx.job("j")) is None
    await set_on_writer(store, "max_page_count = 1000000")
    of = await add_job(store)
    await add_samples(store, of, range(100_000))


async def test_who_fills_the_disk_takes_nobody_along(store: Store) -> None:
    of = await add_job(store)
    await add_job(store, "neighbour")
    [(pages,)] = await run_sql(store, "PRAGMA page_count")
    await set_on_writer(store, f"max_page_count = {pages + 10}")
    small = [asyncio.ensure_future(add_job(store, f"small-{n}")) for n in range(5)]
    large = asyncio.ensure_future(add_samples(store, of, range(100_000)))
    more = [asyncio.ensure_future(add_job(store, f"more-{n}")) for n in range(5)]
    await asyncio.wait([*small, large, *more])
    assert isinstance(large.exception(), Refusal)
    assert [task.exception() for task in (*small, *more)] == [None] * 10
    assert len(await store.read(lambda tx: tx.jobs(limit=99))) == 12


async def test_a_read_only_file_refuses_and_recovers(store: Store) -> None:
    await set_on_writer(store, "query_only = ON")
    with pytest.raises(Refusal, match="can not be written to; check the permissions") as caught:
        await add_job(store)
    assert caught.value.reason is Reason.STORE_UNAVAILABLE
    await set_on_writer(store, "query_only = OFF")
    await add_job(store)


async def test_a_locked_file_refuses_everybody_at_once_and_recovers(
    path: Path, store: Store
) -> None:
    await set_on_writer(store, "busy_timeout = 50")
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    results = await asyncio.gather(
        *(add_job(store, f"j{n}") for n in range(20)), return_exceptions=True
    )
    for result in results:
        assert isinstance(result, Refusal)
        assert result.reason is Reason.STORE_UNAVAILABLE
        assert "another process keeps the database locked" in result.message
    # Readers are not held up by a writer.
    assert await store.read(lambda tx: tx.jobs(limit=9)) == []
    other.execute("ROLLBACK")
    other.close()
    await add_job(store)


async def test_a_damaged_file_is_said_to_be_damaged(path: Path, store: Store) -> None:
    of = await add_job(store)
    await add_samples(store, of, range(50_000))
    await store.close()
    with path.open("r+b") as file:
        file.seek(8 * 4096)
        file.write(os.urandom(100 * 4096))
    store = await open_store(path)
    with pytest.raises(Refusal, match="file is damaged; stop the server and restore") as caught:
        await store.read(lambda tx: tx.samples(of, "loss", spans=[(1, 0, None)]))
    assert caught.value.retry_delay is None
    await store.close()


async def test_a_transaction_that_the_database_undid_is_repeated_alone(store: Store) -> None:
    runs: list[str] = []

    def insert(name: str) -> Any:
        def work(tx: Transaction) -> None:
            runs.append(name)
            tx.insert_job(job(id=name))

        return store.write(work)

    def lose(tx: Transaction) -> None:
        # As SQLite does by itself on some errors; and the work does not notice.
        connection_of(tx).connection.rollback()

    gate = threading.Event()
    blocked = asyncio.ensure_future(store.write(lambda tx: gate.wait(10)))
    await asyncio.sleep(0)
    tasks = [
        asyncio.ensure_future(insert("a")),
        asyncio.ensure_future(store.write(lose)),
        asyncio.ensure_future(insert("b")),
    ]
    await asyncio.sleep(0)
    gate.set()
    await asyncio.wait([blocked, *tasks])
    assert tasks[0].exception() is None
    assert isinstance(tasks[1].exception(), RuntimeError)
    assert tasks[2].exception() is None
    assert {one.id for one in await store.read(lambda tx: tx.jobs(limit=9))} == {"a", "b"}


# The writer's thread


async def test_waiting_work_shares_a_commit(store: Store) -> None:
    commits = 0

    def trace(statement: str) -> None:
        nonlocal commits
        commits += statement == "COMMIT"

    def follow(tx: Transaction) -> None:
        driver = connection_of(tx).connection.driver_connection
        assert driver is not None
        driver.set_trace_callback(trace)

    await store.write(follow)
    await asyncio.gather(*(add_job(store, f"j{n}") for n in range(100)))
    assert len(await store.read(lambda tx: tx.jobs(limit=200))) == 100
    assert commits <= 20


async def test_far_more_callers_than_fit_wait_for_room(store: Store) -> None:
    count = MAX_WAITING + 2 * MAX_GROUP
    numbers = await asyncio.gather(*(store.write(lambda tx, n=n: n) for n in range(count)))  # type: ignore[misc]
    assert numbers == list(range(count))


async def test_work_that_was_cancelled_before_its_turn_is_skipped(store: Store) -> None:
    gate = threading.Event()
    ran: list[int] = []
    blocked = asyncio.ensure_future(store.write(lambda tx: gate.wait(10)))
    await asyncio.sleep(0)
    waiting = [
        asyncio.ensure_future(store.write(lambda tx, n=n: ran.append(n)))  # type: ignore[misc]
        for n in range(4)
    ]
    await asyncio.sleep(0)
    waiting[1].cancel()
    waiting[2].cancel()
    await asyncio.sleep(0)
    gate.set()
    await asyncio.wait([blocked, *waiting])
    assert ran == [0, 3]


async def test_odd_exceptions_reach_their_caller_and_the_writer_lives(store: Store) -> None:
    class Odd(BaseException):
        pass

    def fail(error: BaseException) -> Any:
        def work(tx: Transaction) -> None:
            tx.insert_job(job(id="odd"))
            raise error

        return store.write(work)

    with pytest.raises(Odd):
        await fail(Odd())
    # Python turns it into this one where it leaves a coroutine.
    with pytest.raises(RuntimeError, match="StopIteration"):
        await fail(StopIteration())
    with pytest.raises(WorkError):
        await fail(WorkError())
    await add_job(store)
    assert len(await store.read(lambda tx: tx.jobs(limit=9))) == 1


async def test_a_cancelled_close_closes_all_the_same(path: Path, store: Store) -> None:
    gate = threading.Event()
    blocked = asyncio.ensure_future(store.write(lambda tx: gate.wait(10)))
    await asyncio.sleep(0)
    closing = asyncio.ensure_future(store.close())
    await asyncio.sleep(0)
    closing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await closing
    gate.set()
    assert await blocked
    await store.close()
    await (await open_store(path)).close()


# How the database finds things


@pytest.mark.parametrize(
    ("work", "plan"),
    [
        (lambda tx, of: tx.job("j"), "USING INDEX"),
        (lambda tx, of: tx.jobs(after="a", limit=5), "USING INDEX"),
        (lambda tx, of: tx.update_by_request(of, "r"), "USING INDEX"),
        (lambda tx, of: tx.update(of, 1), "USING PRIMARY KEY"),
        (lambda tx, of: tx.open_updates(of), "updates_by_state (job_key=? AND state=?)"),
        (lambda tx, of: tx.count_open(of), "updates_by_state (job_key=? AND state=?)"),
        (
            lambda tx, of: tx.applied_above(of, 1),
            "updates_by_state (job_key=? AND state=? AND revision>?)",
        ),
        (lambda tx, of: tx.expired_pending(of.create_time, 5), "updates_pending_by_deadline"),
        (lambda tx, of: tx.updates(of, limit=5), "USING PRIMARY KEY (job_key=?)"),
        (lambda tx, of: tx.events(after=3, limit=5), "USING INTEGER PRIMARY KEY"),
        (lambda tx, of: tx.metric_names(of), "(job_key=?)"),
        (
            lambda tx, of: tx.samples(of, "loss", spans=[(1, 0, None)]),
            "USING PRIMARY KEY (series_key=? AND step>? AND step<?)",
        ),
        (
            lambda tx, of: tx.prune(
                samples_before=9, events_before=of.create_time, limit=9
            ),
            "series_by_oldest_time",
        ),
    ],
)
async def test_every_look_up_goes_through_an_index(store: Store, work: Any, plan: str) -> None:
    of = await add_job(store)
    await add_samples(store, of, range(3))

    def explain(tx: Transaction) -> list[str]:
        driver = connection_of(tx).connection.driver_connection
        assert driver is not None
        statements: list[str] = []
        # Filled in with the values, so that they can be run again.
        driver.set_trace_callback(statements.append)
        work(tx, tx.job("j"))
        driver.set_trace_callback(None)
        return [
            step[3]
            for statement in statements
            if statement.lstrip().startswith(("SELECT", "UPDATE", "DELETE"))
            for step in driver.execute(f"EXPLAIN QUERY PLAN {statement}")
        ]

    steps = await store.write(explain)
    assert any(plan in step for step in steps), steps
    scans = [step for step in steps if step.startswith("SCAN") and "INDEX" not in step]
    # The innermost select of a pruning is scanned, which is bounded by its limit.
    assert [step for step in scans if "anon_" not in step and "CONSTANT" not in step] == []
    assert not any("TEMP B-TREE" in step for step in steps if "DISTINCT" not in step), steps


def test_the_store_class_can_be_opened_without_a_loop(path: Path) -> None:
    store = SqliteStore(path)
    asyncio.run(store.close())
