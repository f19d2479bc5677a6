from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.support.use_cases import Clock, UseCases, use_cases


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def plane(tmp_path: Path, clock: Clock) -> AsyncIterator[UseCases]:
    """The use cases on a new database."""
    async with use_cases(tmp_path / "control.db", clock) as parts:
        yield parts
