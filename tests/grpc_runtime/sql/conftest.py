"""Databases with the tables of `notes`."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from grpc_runtime.sql import Database
from tests.grpc_runtime.sql.tables import open_notes
from tests.support.postgres import postgres_address, postgres_server

__all__ = ["database", "path", "postgres_address", "postgres_server"]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "notes.db"


@pytest.fixture
async def database(address: str) -> AsyncIterator[Database]:
    """At the fixture `address`, which each module has its own of."""
    opened = await open_notes(address)
    yield opened
    await opened.close()
