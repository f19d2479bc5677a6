"""The thread that writes and commits for many at once."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any

import pytest

from control_plane.services.ports import Store, Transaction
from control_plane.store import open_store
from control_plane.store.group_commit import MAX_GROUP, MAX_WAITING, GroupCommit
from tests.contract.store_helpers import WorkError, add_job
from tests.control_plane.store.helpers import (
    connection_of,
    run_sql,
)
from tests.support.domain_values import job


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


@pytest.mark.parametrize("seconds", [0.0, 10.0], ids=["first in its group", "joining a group"])
async def test_work_that_was_cancelled_before_its_turn_is_skipped(
    store: Store, monkeypatch: pytest.MonkeyPatch, seconds: float
) -> None:
    monkeypatch.setattr("control_plane.store.group_commit.MAX_GROUP_SECONDS", seconds)
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


async def test_the_writer_survives_what_nobody_thought_of(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def attempt() -> object:
        return await store.write(lambda tx: tx.insert_job(job(id="lost")))

    def fail(*_: object) -> bool:
        raise ZeroDivisionError

    with monkeypatch.context() as patch:
        patch.setattr(GroupCommit, "_attempt", fail)
        with pytest.raises(ZeroDivisionError):
            await attempt()
    # On a connection of its own, as carefully set up as the first.
    await add_job(store)
    assert [one.id for one in await store.read(lambda tx: tx.jobs(limit=9))] == ["j"]
    assert await run_sql(store, "PRAGMA synchronous") == [(2,)]


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
