"""What is too much is refused, and the refusal says what the limit is and when to come again."""

from __future__ import annotations

import asyncio
from pathlib import Path

import grpc
import pytest

from grpc_runtime.bearer import bearer_metadata
from grpc_runtime.errors import MESSAGE_TOO_LARGE, StatusError
from midcourse.control.v1 import control_pb2
from tests.support.plane import RunningPlane, error_of, request, running_plane, set_rate
from tests.support.scripted_agent import ScriptedAgent
from tests.support.secured import secured_plane

EXHAUSTED = grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_sessions(tmp_path: Path) -> None:
    async with running_plane(tmp_path / "control.db", max_sessions=2) as running:
        first = await running.agent("a")
        second = await running.agent("b")
        third = ScriptedAgent(running.agents, "c")
        with pytest.raises(StatusError) as told:
            await third.connect()
        refused = told.value
        assert (refused.code, refused.reason) == (EXHAUSTED, "TOO_MANY_SESSIONS")
        assert refused.metadata == {"limit": "2"}
        assert refused.retry_delay
        # One that comes back takes no room of others.
        again = await running.agent("b")
        await first.leave()
        third = await running.agent("c")
        for agent in (second, again, third):
            await agent.leave()


async def begins(running: RunningPlane) -> bool:
    """Whether a watch is served."""
    watch = running.control.WatchJobs(control_pb2.WatchJobsRequest())
    try:
        await watch.read()
    except grpc.aio.AioRpcError as error:
        code = error.code()
    else:
        watch.cancel()
        return True
    assert code is EXHAUSTED
    return False


async def test_watches(tmp_path: Path) -> None:
    settings = {"max_watches": 1, "max_watches_per_principal": 1}
    async with running_plane(tmp_path / "control.db", **settings) as running:
        watch = running.control.WatchJobs(control_pb2.WatchJobsRequest())
        await watch.read()
        refused = await error_of(running.control.WatchJobs(control_pb2.WatchJobsRequest()).read())
        assert (refused.code, refused.reason) == (EXHAUSTED, "TOO_MANY_OPEN_CALLS")
        assert refused.retry_delay
        watch.cancel()
        # Its end may still be under way.
        async with asyncio.timeout(10):
            while not await begins(running):
                pass


async def test_calls_per_second(tmp_path: Path) -> None:
    async with running_plane(tmp_path / "control.db", max_calls_per_second=0.01) as running:
        await running.control.ListJobs(control_pb2.ListJobsRequest())
        refused = await error_of(running.control.ListJobs(control_pb2.ListJobsRequest()))
        assert (refused.code, refused.reason) == (EXHAUSTED, "TOO_MANY_CALLS")
        assert refused.retry_delay is not None
        assert refused.retry_delay > 10


async def test_calls_without_valid_credentials(tmp_path: Path) -> None:
    async with secured_plane(tmp_path / "control.db", max_strangers_per_second=3.0) as secured:
        control = secured.running.control
        right = await secured.caller("viewer")
        await control.ListJobs(control_pb2.ListJobsRequest(), metadata=right)
        refused: list[StatusError] = []
        while not refused or refused[-1].code is not EXHAUSTED:
            who = bearer_metadata(f"mc_{len(refused)}")
            call = control.ListJobs(control_pb2.ListJobsRequest(), metadata=who)
            refused.append(await error_of(call))
        assert [each.reason for each in refused[:3]] == ["TOKEN_UNKNOWN"] * 3
        assert refused[-1].reason == "TOO_MANY_REFUSED_CALLS"
        assert refused[-1].retry_delay
        assert refused[-1].metadata == {"limit": "3"}
        # Whoever has shown good credentials is served, from the same address too.
        await control.ListJobs(control_pb2.ListJobsRequest(), metadata=right)


async def test_the_size_of_a_message(tmp_path: Path) -> None:
    async with running_plane(tmp_path / "control.db", max_message_bytes=65_536) as running:
        spec = set_rate(reason="x" * 100_000)
        refused = await error_of(running.control.UpdateParameters(request(spec=spec)))
        assert (refused.code, refused.reason) == (EXHAUSTED, MESSAGE_TOO_LARGE)
        assert refused.metadata == {"limit": "65536"}
        assert "max_message_bytes" in refused.message
