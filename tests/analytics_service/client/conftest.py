"""Both clients against one scripted service."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from analytics_service.client import AsyncClient, Client
from tests.support.analytics_callers import QUICK, Caller
from tests.support.scripted_analytics import ScriptedAnalytics


@pytest.fixture
async def service() -> AsyncIterator[ScriptedAnalytics]:
    async with ScriptedAnalytics() as scripted:
        yield scripted


@pytest.fixture(params=["blocking", "asynchronous"])
async def caller(
    request: pytest.FixtureRequest, service: ScriptedAnalytics
) -> AsyncIterator[Caller]:
    if request.param == "blocking":
        with Client(service.address, retry=QUICK) as client:
            yield Caller(client)
    else:
        async with AsyncClient(service.address, retry=QUICK) as async_client:
            yield Caller(async_client)


@pytest.fixture
def within() -> Callable[..., Any]:
    """Waits for something, and not for ever."""

    async def within(awaitable: Any, seconds: float = 20.0) -> Any:
        async with asyncio.timeout(seconds):
            return await awaitable

    return within
