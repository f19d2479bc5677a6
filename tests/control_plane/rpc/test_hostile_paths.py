"""A method whose name is no UTF-8 ends gRPC's own server in the process: what others see of it."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from control_plane.client import AsyncClient, RetryPolicy
from midcourse.control.v1 import update_pb2
from tests.support.http2 import http2_request
from tests.support.plane import RunningPlane, running_plane
from trainer_agent.simulate import LightJobs

TIMES = 3


async def strike(plane: RunningPlane) -> None:
    """Sends one such call, and waits until the connection is gone."""
    host, _, port = plane.address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(http2_request(b"/midcourse.control.v1.ControlPlaneService/\xff"))
    await asyncio.wait_for(reader.read(), 30)
    writer.close()


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.mark.long
# The crash also ends a task of grpc's own, which nobody but the garbage collector looks at.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
async def test_the_server_goes_on_and_whoever_was_cut_off_is_back(tmp_path: Path) -> None:
    """With what clients and agents do by themselves: nobody here looks at an error."""
    async with (
        running_plane(tmp_path / "control.db") as plane,
        AsyncClient(plane.address, timeout=60.0, retry=RetryPolicy(attempts=50)) as client,
        LightJobs(plane.address, step_time=0.01) as jobs,
        client.watch_jobs(job=jobs[0].job_id) as watch,
    ):
        job, files = jobs[0].job_id, 0
        while not (await anext(watch)).position:
            pass  # up to where it can go on from
        for count in range(1, TIMES + 1):
            await strike(plane)
            update = await client.set(job, learning_rate=1e-4 * count, wait=True, wait_timeout=60.0)
            assert update.state == update_pb2.UPDATE_STATE_APPLIED
            files = files or open_files()
        assert open_files() < files + TIMES, "connections that are gone are closed"
        updates = [each async for each in client.list_updates(job)]
        assert len(updates) == TIMES, "each was taken once"
        seen: dict[str, None] = {}
        async with asyncio.timeout(30):
            while len(seen) < TIMES:
                event = await anext(watch)
                if event.HasField("update"):
                    seen[event.update.name] = None
        assert list(seen) == [each.name for each in reversed(updates)]
