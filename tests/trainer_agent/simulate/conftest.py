from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.support.plane import RunningPlane, running_plane


@pytest.fixture
async def plane(tmp_path: Path) -> AsyncIterator[RunningPlane]:
    async with running_plane(tmp_path / "control.db", heartbeat_interval=0.2) as plane:
        yield plane
