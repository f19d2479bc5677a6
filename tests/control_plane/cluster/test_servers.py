"""Three servers on one database, as callers and agents see them."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest

from control_plane.client import Client
from midcourse.control.v1 import control_pb2 as pb
from midcourse.control.v1 import job_pb2, update_pb2
from tests.support.plane import RunningPlane, error_of, running_plane
from tests.support.postgres import PostgresServer
from tests.support.processes import free_port, serve
from tests.support.scripted_agent import applied
from tests.support.use_cases import eventually
from trainer_agent.simulate import LightJobs

APPLIED = update_pb2.UPDATE_STATE_APPLIED


@pytest.fixture
async def planes(address: str) -> AsyncIterator[list[RunningPlane]]:
    async with contextlib.AsyncExitStack() as stack:
        yield [
            await stack.enter_async_context(running_plane(address, heartbeat_interval=1.0))
            for _ in range(3)
        ]


async def test_callers_and_agents_need_not_meet_at_one_server(planes: list[RunningPlane]) -> None:
    a, b, c = planes
    agent = await a.agent()
    watch = c.control.WatchJobs(pb.WatchJobsRequest())
    seen: list[pb.WatchJobsResponse] = []
    begun = asyncio.Event()

    async def look() -> None:
        async for event in watch:
            seen.append(event)
            if event.position:
                begun.set()

    watching = asyncio.create_task(look())
    await asyncio.wait_for(begun.wait(), 20)
    for revision, (caller, waiter) in enumerate([(b, c), (c, a), (a, b)], start=1):
        update = await caller.update()
        assert update.revision == revision
        await agent.receive(revision)
        waiting = asyncio.create_task(waiter.wait(revision))
        await agent.apply(revision)
        assert (await waiting).state == APPLIED
    await eventually(lambda: sum(e.HasField("update") for e in seen) == 9, "all changes")
    changes = [event.update for event in seen if event.HasField("update")]
    watch.cancel()
    await asyncio.wait([watching])
    # Each of accepted, delivered and applied, shown as it is by then.
    assert [change.revision for change in changes] == [1, 1, 1, 2, 2, 2, 3, 3, 3]
    assert [change.state for change in changes[2::3]] == [APPLIED] * 3
    await agent.leave()


async def test_an_agent_that_comes_to_another_server_is_served_there_alone(
    planes: list[RunningPlane],
) -> None:
    a, b, _ = planes
    old = await a.agent()
    new = await b.agent()
    error = await old.end()
    assert error is not None
    assert (error.code, error.reason) == (grpc.StatusCode.ABORTED, "SESSION_FENCED")
    await a.update()
    assert [update.revision for update in await new.receive()] == [1]
    await new.leave()


async def test_servers_that_lose_the_database_keep_their_agents_and_recover(
    planes: list[RunningPlane], postgres_server: PostgresServer
) -> None:
    a, b, c = planes
    agent = await a.agent()
    await b.update()
    await agent.receive()
    await asyncio.to_thread(postgres_server.stop)
    try:
        for plane in planes:
            error = await error_of(plane.update())
            assert (error.code, error.reason) == (grpc.StatusCode.UNAVAILABLE, "STORE_UNAVAILABLE")
            assert error.retry_delay is not None
            assert error.retry_delay > 0
        number = await agent.say(outcome=applied(1))
    finally:
        await asyncio.to_thread(postgres_server.start)
    await agent.acknowledged(number)
    assert (await c.wait(1)).state == APPLIED
    async with asyncio.timeout(20):
        while True:
            with contextlib.suppress(grpc.aio.AioRpcError):
                await c.update()
                break
            await asyncio.sleep(0.05)  # between two tries
    assert [update.revision for update in await agent.receive(2)][-1] == 2
    assert agent.error is None
    await agent.leave()


async def test_the_jobs_of_a_server_that_is_killed_go_on_at_another(
    address: str, tmp_path: Path
) -> None:
    port = free_port()
    victim = serve(port, tmp_path, database=address, heartbeat_interval=1.0, log_level="warning")
    try:
        async with running_plane(address, heartbeat_interval=1.0) as survivor:
            async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
                await asyncio.wait_for(channel.channel_ready(), 60)
            both = f"127.0.0.1:{port},{survivor.address}"
            async with LightJobs(both, 6, step_time=0.02, report_every=0.2) as jobs:
                names = [job.spec.job_id for job in jobs]
                await asyncio.to_thread(victim.kill)
                killed = time.monotonic()
                for name in names:
                    await survivor.update(name, value=1e-4)
                for name in names:
                    update = await survivor.wait(1, name, seconds=20)
                    assert update.state == APPLIED, update
                assert time.monotonic() - killed < 5
                listed = await survivor.control.ListJobs(pb.ListJobsRequest(page_size=100))
                assert {job.state for job in listed.jobs} == {job_pb2.JOB_STATE_RUNNING}

                # A caller goes on as well, whichever server it would have begun with.
                def set_again() -> list[int]:
                    with Client(both) as client:
                        return [client.set(names[0], learning_rate=1e-4).revision for _ in range(2)]

                assert await asyncio.to_thread(set_again) == [2, 3]
    finally:
        victim.end()
