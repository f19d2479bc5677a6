"""An empty store in a file, and a PostgreSQL server."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from control_plane.services.ports import Store
from control_plane.store import open_store
from tests.support.postgres import postgres_address, postgres_server

__all__ = ["postgres_address", "postgres_server"]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "control.db"


@pytest.fixture
async def store(path: Path) -> AsyncIterator[Store]:
    opened = await open_store(path)
    yield opened
    await opened.close()
