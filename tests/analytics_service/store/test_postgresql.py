"""The store in a PostgreSQL database, shared by two replicas: the contract."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest

from analytics_service.ports import Store
from analytics_service.store import open_store
from tests.contract.analytics_store_contract import AnalyticsStoreContract
from tests.support.analytics_store import NOW, clear, run_sql
from tests.support.postgres import PostgresServer


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
    assert {collation for *_, collation in rows} == {"C"}
