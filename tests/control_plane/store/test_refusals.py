"""What goes wrong with the database, in the control plane's own terms."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from control_plane.domain.errors import Reason, Refusal
from control_plane.services.ports import Store
from control_plane.store import open_store
from grpc_runtime.sql import DatabaseUnavailableError
from tests.contract.store_helpers import add_job, add_samples
from tests.control_plane.store.helpers import run_sql, set_on_writer
from tests.support.domain_values import job


async def test_a_full_disk_refuses_and_recovers(store: Store) -> None:
    of = await add_job(store)
    [(pages,)] = await run_sql(store, "PRAGMA page_count")
    set_on_writer(store, f"max_page_count = {pages + 4}")
    with pytest.raises(Refusal, match="disk that holds the database is full; free some") as caught:
        await add_samples(store, of, range(100_000))
    assert caught.value.reason is Reason.STORE_UNAVAILABLE
    assert caught.value.retry_delay
    assert isinstance(caught.value.__cause__, DatabaseUnavailableError)
    # What still fits goes on, reads too; and nothing of the rest is there.
    await store.write(lambda tx: tx.delete_job(of))
    assert await store.read(lambda tx: tx.job("j")) is None
    set_on_writer(store, "max_page_count = 1000000")
    of = await add_job(store)
    await add_samples(store, of, range(100_000))


async def test_reads_can_not_write(store: Store) -> None:
    with pytest.raises(Refusal, match="readonly") as caught:
        await store.read(lambda tx: tx.insert_job(job()))
    assert caught.value.reason is Reason.STORE_UNAVAILABLE
    assert await store.read(lambda tx: tx.job("j")) is None


async def test_a_damaged_file_is_said_to_be_damaged(path: Path, store: Store) -> None:
    of = await add_job(store)
    await add_samples(store, of, range(50_000))
    await store.close()
    with path.open("r+b") as file:
        file.seek(64 * 4096)  # behind the schema, amidst the samples
        file.write(os.urandom(100 * 4096))
    store = await open_store(path)
    with pytest.raises(Refusal, match="file is damaged; stop the server and restore") as caught:
        await store.read(lambda tx: tx.samples(of, "loss", spans=[(1, 0, None)]))
    assert caught.value.retry_delay is None
    await store.close()


async def test_a_closed_store_is_a_server_that_is_shutting_down(store: Store) -> None:
    await store.close()
    for attempt in (store.write, store.read):
        with pytest.raises(Refusal, match="shutting down; try again") as caught:
            await attempt(lambda tx: tx.job("j"))
        assert caught.value.reason is Reason.SHUTTING_DOWN
        assert caught.value.retry_delay
