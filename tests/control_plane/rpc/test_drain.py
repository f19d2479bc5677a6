"""A server that is told to stop ends what would wait for longer than it lives."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import grpc
import pytest

from control_plane.config import ServerSettings
from control_plane.server import ControlPlane
from grpc_runtime.errors import from_rpc_error
from midcourse.control.v1 import control_pb2 as api
from midcourse.control.v1.control_pb2_grpc import ControlPlaneServiceStub


async def test_an_open_watch_does_not_hold_up_the_stop(tmp_path: Path) -> None:
    settings = ServerSettings(
        listen="127.0.0.1:0", database=str(tmp_path / "control.db"), grace=60.0
    )
    async with ControlPlane.open(settings) as plane:
        async with grpc.aio.insecure_channel(str(plane.service.address)) as channel:
            stub = ControlPlaneServiceStub(channel)
            watch = stub.WatchJobs(api.WatchJobsRequest())
            first = await watch.read()
            assert first.type == api.JOB_EVENT_TYPE_BOOKMARK
            began = time.monotonic()
            stopping = asyncio.ensure_future(plane.service.stop())
            with pytest.raises(grpc.aio.AioRpcError) as ended:
                await watch.read()
            await stopping
    assert time.monotonic() - began < 30
    error = from_rpc_error(ended.value)
    assert (error.code, error.reason) == (grpc.StatusCode.UNAVAILABLE, "SHUTTING_DOWN")
    assert error.retry_delay is not None
