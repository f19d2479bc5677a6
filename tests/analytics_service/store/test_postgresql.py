"""The store in a PostgreSQL database, shared by two replicas: the contract."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from decimal import Decimal
from typing import Any

import psycopg
import pytest
from sqlalchemy import Connection

from analytics_service.ports import Store
from analytics_service.store import budgets, open_store
from analytics_service.store.store import SqlStore
from analytics_service.usage.records import BudgetKey, Period, UsageRecord
from grpc_runtime.sql.postgresql import PostgresDatabase
from tests.contract.analytics_store_budgets import recomputed
from tests.contract.analytics_store_contract import AnalyticsStoreContract
from tests.support.analytics_store import ALL_DAY, DAY, NOW, all_usage, call, clear, run_sql, turn
from tests.support.postgres import PostgresServer
from tests.support.processes import until


@pytest.fixture(scope="module")
def address(postgres_server: PostgresServer) -> Iterator[str]:
    """One database for all tests here; each leaves it empty."""
    with postgres_server.empty_database() as made:
        yield made
        # Attempts that end in one are repeated, so nothing else would tell of them.
        with postgres_server.session() as session:
            found = session.execute(
                "SELECT deadlocks, xact_commit FROM pg_stat_database WHERE datname = %s",
                [made.rpartition("/")[2]],
            ).fetchone()
        assert found is not None
        assert found[1] > 0
        assert found[0] == 0, "transactions have waited for each other in a circle"


@pytest.fixture
async def other(address: str) -> AsyncIterator[Store]:
    opened = await open_store(address, clock=lambda: NOW)
    yield opened
    await clear(opened)
    await opened.close()


@pytest.fixture
async def store(address: str, other: Store) -> AsyncIterator[Store]:
    opened = await open_store(address, clock=lambda: NOW)
    yield opened
    await opened.close()


class TestPostgresStore(AnalyticsStoreContract):
    """The contract that every store keeps."""


async def test_names_are_compared_by_code_point_whatever_the_language(store: Store) -> None:
    rows = await run_sql(
        store,
        "SELECT table_name, column_name, collation_name FROM information_schema.columns "
        "WHERE table_schema = 'public' AND column_name IN "
        "('id', 'principal', 'session_id', 'used_model', 'request_id', 'model_id', 'replica')",
    )
    assert len(rows) > 10
    only_shown = ("audit_records", "request_id")
    assert {where[-1] for where in rows if tuple(where[:2]) != only_shown} == {"C"}


WAITING = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"


@pytest.mark.parametrize("way", ["set_limit", "set_limit_turn", "make_window", "recover"])
async def test_who_counts_waits_for_a_call_that_is_being_recorded(
    store: Store,
    other: Store,
    postgres_server: PostgresServer,
    monkeypatch: pytest.MonkeyPatch,
    way: str,
) -> None:
    """Else the call would be in no sum and in no counter."""
    stands, goes_on = threading.Event(), threading.Event()
    reserve = budgets.reserve
    record = call(replica="dead")

    def slowly(connection: Connection, of: UsageRecord) -> None:
        reserve(connection, of)
        if of.id == record.id:
            stands.set()
            assert goes_on.wait(30)

    monkeypatch.setattr(budgets, "reserve", slowly)
    if way == "make_window":
        # Only for those whose own window is missing.
        await store.set_budget(BudgetKey("bob", None, Period.DAY), Decimal(9), NOW - DAY)
    beginning: asyncio.Task[object] = asyncio.create_task(
        store.begin_turn(turn(), record) if way == "set_limit_turn" else store.begin_call(record)
    )
    assert await asyncio.to_thread(stands.wait, 30)
    counting: asyncio.Task[object]
    if way.startswith("set_limit"):
        counting = asyncio.create_task(other.set_budget(ALL_DAY, Decimal(9), NOW))
    elif way == "make_window":
        counting = asyncio.create_task(other.begin_call(call(principal="bob")))
    else:
        # Something else that is dead, so that there is something to do.
        await store.begin_call(call(replica="dead"))
        counting = asyncio.create_task(other.recover("r2", {}, NOW))

    def waits(session: psycopg.Connection[Any]) -> bool:
        found = session.execute(WAITING).fetchone()
        return counting.done() or (found is not None and found[0] > 0)

    with postgres_server.session(store_name(store)) as session:
        await asyncio.to_thread(until, lambda: waits(session), "somebody waits for the lock")
    assert not counting.done()
    goes_on.set()
    await asyncio.gather(beginning, counting)
    if way == "recover":
        assert counting.result() == 2
    budget = await store.get_budget(ALL_DAY, NOW)
    assert budget == recomputed(budget, await all_usage(store))


def store_name(store: Store) -> str:
    assert isinstance(store, SqlStore)
    assert isinstance(store._database, PostgresDatabase)
    name = store._database._engine.url.database
    assert name is not None
    return name
