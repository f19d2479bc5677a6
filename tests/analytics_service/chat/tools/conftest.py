"""A control plane with the known run on it, and a toolbox that asks it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from analytics_service.chat.tools import Toolbox
from analytics_service.threads import Threads
from control_plane.client import Client, RetryPolicy
from tests.support.known_run import known_run
from tests.support.plane import RunningPlane, running_plane

NOW = datetime(2026, 11, 23, 8, 30, tzinfo=UTC)


@pytest.fixture
async def plane(tmp_path: Path) -> AsyncIterator[RunningPlane]:
    async with running_plane(tmp_path / "control.db") as running:
        yield running


@pytest.fixture
async def demo(plane: RunningPlane) -> RunningPlane:
    """The plane, with the known run "demo" on it."""
    await known_run(plane, labels={"team": "nlp"})
    return plane


@pytest.fixture
def client(plane: RunningPlane) -> Iterator[Client]:
    retry = RetryPolicy(attempts=2, initial=0.01, maximum=0.02)
    with Client(plane.address, retry=retry) as made:
        yield made


@pytest.fixture
def tools(client: Client) -> Toolbox:
    return Toolbox(client, Threads(4, "tools"), clock=lambda: NOW)
