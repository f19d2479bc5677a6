"""A server that is told to stop ends what would wait for longer than it lives."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import grpc

from midcourse.control.v1 import control_pb2 as pb
from tests.support.plane import error_of, running_plane
from tests.support.use_cases import eventually


async def test_an_open_watch_does_not_hold_up_the_stop(tmp_path: Path) -> None:
    async with running_plane(tmp_path / "control.db", grace=60.0) as plane:
        watch = plane.control.WatchJobs(pb.WatchJobsRequest())
        assert (await watch.read()).type == pb.JOB_EVENT_TYPE_BOOKMARK
        began = time.monotonic()
        stopping = asyncio.ensure_future(plane.plane.service.stop())
        error = await error_of(watch.read())
        await stopping
    assert time.monotonic() - began < 30
    assert (error.code, error.reason) == (grpc.StatusCode.UNAVAILABLE, "SHUTTING_DOWN")
    assert error.retry_delay is not None


async def test_whoever_waits_for_an_update_does_not_hold_up_the_stop(tmp_path: Path) -> None:
    async with running_plane(tmp_path / "control.db", grace=60.0) as plane:
        agent = await plane.agent()
        await plane.update()
        await agent.receive()
        asked = pb.WaitUpdateRequest(name="jobs/j/updates/1")
        waiting = asyncio.ensure_future(error_of(plane.control.WaitUpdate(asked)))
        bus = plane.plane.bus
        await eventually(lambda: bus._subscribers.get("updates/j"), "that it waits")
        began = time.monotonic()
        stopping = asyncio.ensure_future(plane.plane.service.stop())
        error = await waiting
        await agent.leave()
        await stopping
    assert time.monotonic() - began < 30
    assert error.reason == "SHUTTING_DOWN"
