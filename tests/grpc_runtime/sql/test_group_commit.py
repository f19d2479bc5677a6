"""The thread that writes and commits for many at once."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection

from grpc_runtime.sql import Database
from grpc_runtime.sql.errors import TransactionLostError
from grpc_runtime.sql.group_commit import MAX_GROUP, MAX_WAITING, GroupCommit
from tests.grpc_runtime.sql.tables import add, count, names, run_sql


@pytest.fixture
def address(path: Path) -> str:
    return f"sqlite:///{path}"


async def test_waiting_work_shares_a_commit(database: Database) -> None:
    commits = 0

    def trace(statement: str) -> None:
        nonlocal commits
        commits += statement == "COMMIT"

    def follow(connection: Connection) -> None:
        driver = connection.connection.driver_connection
        assert driver is not None
        driver.set_trace_callback(trace)

    await database.write(follow)
    await asyncio.gather(*(database.write(add(f"{n}")) for n in range(100)))
    assert await database.read(count) == 100
    assert commits <= 20


async def test_far_more_callers_than_fit_wait_for_room(database: Database) -> None:
    callers = MAX_WAITING + 2 * MAX_GROUP
    numbers = await asyncio.gather(*(database.write(lambda _, n=n: n) for n in range(callers)))  # type: ignore[misc]
    assert numbers == list(range(callers))


@pytest.mark.parametrize("seconds", [0.0, 10.0], ids=["first in its group", "joining a group"])
async def test_work_that_was_cancelled_before_its_turn_is_skipped(
    database: Database, monkeypatch: pytest.MonkeyPatch, seconds: float
) -> None:
    monkeypatch.setattr("grpc_runtime.sql.group_commit.MAX_GROUP_SECONDS", seconds)
    gate = threading.Event()
    ran: list[int] = []
    blocked = asyncio.ensure_future(database.write(lambda _: gate.wait(10)))
    await asyncio.sleep(0)
    waiting = [
        asyncio.ensure_future(database.write(lambda _, n=n: ran.append(n)))  # type: ignore[misc]
        for n in range(4)
    ]
    await asyncio.sleep(0)
    waiting[1].cancel()
    waiting[2].cancel()
    await asyncio.sleep(0)
    gate.set()
    await asyncio.wait([blocked, *waiting])
    assert ran == [0, 3]


async def test_the_writer_survives_what_nobody_thought_of(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> bool:
        raise ZeroDivisionError

    with monkeypatch.context() as patch:
        patch.setattr(GroupCommit, "_attempt", fail)
        with pytest.raises(ZeroDivisionError):
            await database.write(add("lost"))
    # On a connection of its own, as carefully set up as the first.
    await database.write(add("kept"))
    assert await database.read(names) == ["kept"]
    assert await run_sql(database, "PRAGMA synchronous") == [(2,)]


async def test_a_transaction_that_the_database_undid_is_repeated_alone(database: Database) -> None:
    def lose(connection: Connection) -> None:
        # As SQLite does by itself on some errors; and the work does not notice.
        connection.connection.rollback()

    gate = threading.Event()
    blocked = asyncio.ensure_future(database.write(lambda _: gate.wait(10)))
    await asyncio.sleep(0)
    tasks: list[asyncio.Future[Any]] = [
        asyncio.ensure_future(database.write(work)) for work in (add("a"), lose, add("b"))
    ]
    await asyncio.sleep(0)
    gate.set()
    await asyncio.wait([blocked, *tasks])
    assert tasks[0].exception() is None
    assert isinstance(tasks[1].exception(), TransactionLostError)
    assert tasks[2].exception() is None
    assert await database.read(names) == ["a", "b"]


async def test_in_a_group_only_what_failed_is_undone(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("grpc_runtime.sql.group_commit.MAX_GROUP_SECONDS", 10.0)
    gate = threading.Event()
    runs: list[str] = []

    def unit(name: str, *, fails: bool) -> Any:
        def work(connection: Connection) -> None:
            runs.append(name)
            if not name.startswith("bare"):
                add(name)(connection)
            if fails:
                raise ZeroDivisionError

        return work

    async def together(*units: Any) -> list[Any]:
        gate.clear()
        blocked = asyncio.ensure_future(database.write(lambda _: gate.wait(10)))
        await asyncio.sleep(0)
        waiting = [asyncio.ensure_future(database.write(each)) for each in units]
        await asyncio.sleep(0)
        gate.set()
        await blocked
        return await asyncio.gather(*waiting, return_exceptions=True)

    # What has changed nothing is not worth another run of the others.
    bare = unit("bare", fails=True)
    answers = await together(unit("a", fails=False), bare, unit("b", fails=False))
    assert [type(each) for each in answers] == [type(None), ZeroDivisionError, type(None)]
    assert runs == ["a", "bare", "b"]
    assert await database.read(names) == ["a", "b"]
    answers = await together(unit("c", fails=False), unit("d", fails=True), unit("e", fails=False))
    assert [type(each) for each in answers] == [type(None), ZeroDivisionError, type(None)]
    assert await database.read(names) == ["a", "b", "c", "e"]
