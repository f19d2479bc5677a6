from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.support.plane import RunningPlane, running_plane
from tests.support.postgres import postgres_server

__all__ = ["postgres_server"]


@pytest.fixture
async def plane(tmp_path: Path) -> AsyncIterator[RunningPlane]:
    """A control plane on a new database."""
    async with running_plane(tmp_path / "control.db") as running:
        yield running
