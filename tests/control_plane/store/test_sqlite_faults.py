"""Full, read-only, locked and damaged files: refused with what to do, and recovered from."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import threading
from pathlib import Path
from typing import Any

import pytest

from control_plane.domain.errors import Reason, Refusal
from control_plane.services.ports import Store, Transaction
from control_plane.store import open_store
from tests.contract.store_helpers import add_job, add_samples
from tests.control_plane.store.helpers import (
    connection_of,
    run_sql,
    set_on_writer,
)
from tests.support.domain_values import job


async def test_a_full_disk_refuses_and_recovers(store: Store) -> None:
    of = await add_job(store)
    [(pages,)] = await run_sql(store, "PRAGMA page_count")
    set_on_writer(store, f"max_page_count = {pages + 4}")
    with pytest.raises(Refusal, match="disk that holds the database is full; free some") as caught:
        await add_samples(store, of, range(100_000))
    assert caught.value.reason is Reason.STORE_UNAVAILABLE
    assert caught.value.retry_delay
    # What still fits goes on, reads too; and nothing of the rest is there.
    await store.write(lambda tx: tx.delete_job(of))
    assert await store.read(lambda tx: tx.job("j")) is None
    set_on_writer(store, "max_page_count = 1000000")
    of = await add_job(store)
    await add_samples(store, of, range(100_000))


async def test_who_fills_the_disk_takes_nobody_along(store: Store) -> None:
    of = await add_job(store)
    await add_job(store, "neighbour")
    [(pages,)] = await run_sql(store, "PRAGMA page_count")
    set_on_writer(store, f"max_page_count = {pages + 10}")
    small = [asyncio.ensure_future(add_job(store, f"small-{n}")) for n in range(5)]
    large = asyncio.ensure_future(add_samples(store, of, range(100_000)))
    more = [asyncio.ensure_future(add_job(store, f"more-{n}")) for n in range(5)]
    await asyncio.wait([*small, large, *more])
    assert isinstance(large.exception(), Refusal)
    assert [task.exception() for task in (*small, *more)] == [None] * 10
    assert len(await store.read(lambda tx: tx.jobs(limit=99))) == 12


async def test_a_read_only_file_refuses_and_recovers(store: Store) -> None:
    set_on_writer(store, "query_only = ON")
    with pytest.raises(Refusal, match="can not be written to; check the permissions") as caught:
        await add_job(store)
    assert caught.value.reason is Reason.STORE_UNAVAILABLE
    set_on_writer(store, "query_only = OFF")
    await add_job(store)


async def test_a_locked_file_refuses_everybody_at_once_and_recovers(
    path: Path, store: Store
) -> None:
    set_on_writer(store, "busy_timeout = 50")
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
