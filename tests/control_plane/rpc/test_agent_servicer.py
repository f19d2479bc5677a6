"""How the stream of an agent ends, where what gRPC does can be chosen."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from control_plane.rpc.agent_servicer import AgentServicer
from midcourse.agent.v1 import session_pb2 as pb
from tests.support.scripted_agent import hello
from tests.support.use_cases import UseCases, use_cases


@pytest.fixture
async def plane(tmp_path: Path) -> AsyncIterator[UseCases]:
    async with use_cases(tmp_path / "control.db") as parts:
        yield parts


class CancelledWhileItEnds:
    """A call that gRPC cancels while its handler ends, as the caller has ended its own side."""

    def __init__(self) -> None:
        self.welcomed = asyncio.Event()
        self.handler: asyncio.Task[Any] | None = None

    async def requests(self) -> AsyncIterator[pb.SessionRequest]:
        yield pb.SessionRequest(sequence=1, hello=hello())
        await self.welcomed.wait()

    async def write(self, _response: pb.SessionResponse) -> None:
        self.welcomed.set()
        try:
            await asyncio.Event().wait()
        finally:
            assert self.handler is not None
            self.handler.cancel()


async def test_a_stream_that_is_cancelled_while_it_ends_ends(plane: UseCases) -> None:
    call: Any = CancelledWhileItEnds()
    call.handler = asyncio.create_task(AgentServicer(plane.sessions).Session(call.requests(), call))
    await asyncio.wait([call.handler], timeout=30)
    assert call.handler.cancelled()
    async with asyncio.timeout(30):
        while (session := (await plane.job()).session) is None or session.connected:  # noqa: ASYNC110 - nothing tells
            await asyncio.sleep(0)
    assert plane.sessions.count == 0
