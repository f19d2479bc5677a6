"""An empty store in a file, and a PostgreSQL server."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from analytics_service.ports import Store
from analytics_service.store import open_store
from tests.support.analytics_store import NOW
from tests.support.postgres import postgres_address, postgres_server

__all__ = ["postgres_address", "postgres_server"]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "analytics.db"


@pytest.fixture
async def store(path: Path) -> AsyncIterator[Store]:
    opened = await open_store(path, clock=lambda: NOW)
    yield opened
    await opened.close()


@pytest.fixture
def other(store: Store) -> Store:
    """The file belongs to one process at a time."""
    return store
