"""An analytics service that gets requests of any content; see `tests.support.any_request`."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc

from analytics_service.usage.records import UsageFilter, UsageGroup
from midcourse.analytics.v1 import analytics_pb2
from tests.support.analytics import RunningAnalytics, running_analytics, until
from tests.support.any_request import Served, methods_of
from tests.support.fake_provider_script import Reply, text

METHODS = methods_of(analytics_pb2)


class Questioned(Served):
    """An analytics service with a session in which something was asked."""

    def __init__(
        self, runner: asyncio.Runner, channel: grpc.aio.Channel, running: RunningAnalytics
    ) -> None:
        super().__init__(runner, channel)
        self.running = running

    async def state(self) -> object:
        """What a change would change."""
        chat = self.running.service.chat
        # An answer that was left is still being recorded.
        await until(lambda: not chat._running and not chat._beginning)
        store: Any = self.running.service.chat._store
        everything = UsageFilter()
        return (
            await store.list_sessions("anonymous", None, 100_000),
            await store.sum_usage(everything, UsageGroup.ALL),
            await store.list_budgets(self.running.service._clock()),
        )

    async def is_alive(self) -> None:
        """Makes sure that it still serves what there is."""
        assert await self.running.client.list_models()


@contextlib.contextmanager
def questioned(folder: Path, database: str | None = None) -> Iterator[Questioned]:
    """Serves while the block runs."""
    with asyncio.Runner() as runner:
        stack = contextlib.AsyncExitStack()

        async def begin() -> Questioned:
            running = await stack.enter_async_context(running_analytics(folder, database=database))
            running.fake.default = lambda _: Reply((text("42"),))
            channel = await stack.enter_async_context(grpc.aio.insecure_channel(running.address))
            await running.client.ask("how many?")
            await running.client.set_budget(1_000_000, "month", principal="j")
            return Questioned(runner, channel, running)

        served = runner.run(begin())
        try:
            yield served
        finally:
            runner.run(stack.aclose())
