"""The tables: as the queries expect them, and found by index, never by looking at everything."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import Connection, create_engine

from analytics_service.ports import NewTurn, SessionCursor, Store
from analytics_service.store import budgets, calls, open_store, recovery, retention, sessions, turns
from analytics_service.store import usage as usage_queries
from analytics_service.store.schema import metadata
from analytics_service.store.store import SqlStore
from analytics_service.usage.records import BudgetKey, Period, UsageFilter, UsageGroup
from tests.support.analytics_store import (
    ALL_DAY,
    DAY,
    NOW,
    call,
    ended,
    finish,
    run_sql,
    session,
    turn,
)


def differences(connection: Connection) -> list[Any]:
    found: list[Any] = compare_metadata(MigrationContext.configure(connection), metadata)
    return found


async def test_migrations_make_what_the_queries_expect_in_sqlite(store: Store) -> None:
    assert isinstance(store, SqlStore)
    assert await store._database.read(differences) == []
    rows = await run_sql(store, "SELECT name, sql FROM sqlite_schema WHERE sql IS NOT NULL")
    made = {name: words(sql) for name, sql in rows if name != "alembic_version"}
    # The comparison overlooks conditions of indexes and when foreign keys are checked.
    engine = create_engine("sqlite://")
    with engine.begin() as connection:
        metadata.create_all(connection)
        expected = connection.exec_driver_sql(
            "SELECT name, sql FROM sqlite_schema WHERE sql IS NOT NULL"
        )
        assert made == {name: words(sql) for name, sql in expected}
    engine.dispose()


async def test_migrations_make_what_the_queries_expect_in_postgresql(postgres_address: str) -> None:
    store = await open_store(postgres_address)
    assert isinstance(store, SqlStore)
    found = await store._database.read(differences)
    conditions = await run_sql(
        store, "SELECT indexdef FROM pg_indexes WHERE indexdef LIKE '%%WHERE%%' ORDER BY 1"
    )
    await store.close()
    assert found == []
    assert ["'running'" in each for (each,) in conditions] == [True, True]


def words(sql: str) -> list[str]:
    return sql.split()


WHICH = UsageFilter(NOW - DAY, NOW)
CURSOR = SessionCursor(NOW, "s")
OLD = NOW - timedelta(days=400)
REPLAYED = turn(request_id="q")
NEXT = turn(session(version=2), is_new=False, request_id="q2")


def prune(connection: Connection, before: datetime) -> None:
    retention.prune(connection, sessions_before=before, usage_before=before, limit=9, now=NOW)


def begin_next(connection: Connection, of: NewTurn) -> None:
    budgets.guard(connection, alone=False)
    turns.begin(connection, of, call())


@pytest.mark.parametrize(
    ("work", "plan"),
    [
        (lambda c: sessions.get(c, "s"), "sqlite_autoindex_sessions_1"),
        (lambda c: sessions.listing(c, "ann", CURSOR, 9), "sessions_by_principal (principal=? AND"),
        (lambda c: sessions.listing(c, "ann", None, 9), "sessions_by_principal (principal=?)"),
        (lambda c: sessions.next_messages(c, "s", 1, 9), "(session_id=? AND number>?)"),
        (lambda c: sessions.last_messages(c, "s", 9), "(session_id=?)"),
        (lambda c: sessions.cancels_requested(c, "r1"), "messages_running (replica=?)"),
        (lambda c: turns.replay(c, REPLAYED), "(principal=? AND request_id=?)"),
        (lambda c: begin_next(c, NEXT), "budget_windows_1 (budget=? AND start=?)"),
        (
            lambda c: calls.end(c, ended(call("u1")), None),
            "budget_windows_1 (budget=? AND start=?)",
        ),
        (lambda c: recovery.recover(c, "r9", {}, NOW), "usage USING INDEX usage_running"),
        (lambda c: recovery.recover(c, "r9", {}, NOW), "messages USING INDEX messages_running"),
        (lambda c: usage_queries.listing(c, UsageFilter(), "u9", 9), "autoindex_usage_1 (id<?)"),
        (
            lambda c: usage_queries.listing(c, UsageFilter(principal="ann"), "u9", 9),
            "usage_by_principal (principal=? AND id<?)",
        ),
        (
            lambda c: usage_queries.listing(c, UsageFilter(model_id="m"), "u9", 9),
            "usage_by_model (used_model=? AND id<?)",
        ),
        (
            lambda c: usage_queries.listing(c, UsageFilter(session_id="s"), None, 9),
            "usage_by_session (session_id=?)",
        ),
        (lambda c: usage_queries.summed(c, WHICH, UsageGroup.ALL), "usage_by_time (time>?"),
        (
            lambda c: usage_queries.summed(c, replace(WHICH, principal="ann"), UsageGroup.DAY),
            "usage_by_principal_time (principal=? AND time>?",
        ),
        (
            lambda c: budgets.get(c, BudgetKey("x", None, Period.DAY), NOW),
            "(principal=? AND time>?",
        ),
        (lambda c: prune(c, OLD), "usage_by_time (time<?)"),
        (lambda c: prune(c, OLD), "sessions_by_updated (updated<?)"),
        (lambda c: prune(c, OLD), "budget_windows_by_start (start<?)"),
    ],
)
async def test_every_look_up_goes_through_an_index(store: Store, work: Any, plan: str) -> None:
    await store.set_budget(ALL_DAY, Decimal(99), NOW)
    await finish(store, await store.begin_turn(REPLAYED, None))
    await store.begin_call(call("u1"))

    def explain(connection: Connection) -> list[str]:
        driver = connection.connection.driver_connection
        assert driver is not None
        statements: list[str] = []
        # Filled in with the values, so that they can be run again.
        driver.set_trace_callback(statements.append)
        try:
            work(connection)
        finally:
            driver.set_trace_callback(None)
        return [
            step[3]
            for statement in statements
            if statement.lstrip().startswith(("SELECT", "UPDATE", "DELETE"))
            for step in driver.execute(f"EXPLAIN QUERY PLAN {statement}")
        ]

    assert isinstance(store, SqlStore)
    steps = await store._database.write(explain)
    assert any(plan in step for step in steps), steps
    scans = {step for step in steps if step.startswith("SCAN") and "INDEX" not in step}
    # There are only ever a few.
    assert scans <= {"SCAN replicas"}, steps
