"""The store in an SQLite file: the contract, and a file that can not be written to."""

from __future__ import annotations

import sqlite3

import pytest

from analytics_service.errors import Reason, Refusal
from analytics_service.ports import Store
from analytics_service.store.store import SqlStore
from grpc_runtime.sql.sqlite import SqliteDatabase
from tests.contract.analytics_store_contract import AnalyticsStoreContract
from tests.support.analytics_store import call, turn


class TestSqliteStore(AnalyticsStoreContract):
    """The contract that every store keeps."""


async def test_what_can_not_be_written_now_is_refused_and_may_be_repeated(store: Store) -> None:
    assert isinstance(store, SqlStore)
    assert isinstance(store._database, SqliteDatabase)
    # Nobody else uses it while nothing is asked for.
    writer = store._database._writer._connection.connection.driver_connection
    assert isinstance(writer, sqlite3.Connection)
    writer.execute("PRAGMA query_only = ON")
    with pytest.raises(Refusal, match="can not be written to") as caught:
        await store.begin_turn(turn(request_id="q"), call())
    assert caught.value.reason is Reason.STORE_UNAVAILABLE
    assert caught.value.retry_delay is not None
    assert await store.get_session("s") is None
    writer.execute("PRAGMA query_only = OFF")
    assert not (await store.begin_turn(turn(request_id="q"), call())).replayed
