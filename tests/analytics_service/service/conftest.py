from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.support.analytics import RunningAnalytics, running_analytics
from tests.support.postgres import postgres_address, postgres_server

__all__ = ["postgres_address", "postgres_server"]


@pytest.fixture
async def analytics(tmp_path: Path) -> AsyncIterator[RunningAnalytics]:
    async with running_analytics(tmp_path, idle_timeout=5.0) as running:
        yield running
