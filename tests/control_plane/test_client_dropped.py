"""A watch that its program has dropped without closing it ends at the server too."""

from __future__ import annotations

import asyncio
import gc
from pathlib import Path

from control_plane.client import AsyncClient
from tests.support.plane import running_plane
from tests.support.use_cases import eventually


async def first_event(client: AsyncClient) -> None:
    """As loops are left that have found what they were after."""
    async for _ in client.watch_jobs():
        break


async def test_a_loop_that_is_left_leaves_no_call_behind(tmp_path: Path) -> None:
    async with (
        running_plane(tmp_path / "control.db") as running,
        AsyncClient(running.address) as client,
    ):
        for _ in range(3):
            await first_event(client)
        gc.collect()
        await eventually(lambda: running.plane.watches.count == 0, "all watches have ended", 30)


async def test_so_does_one_of_a_task_that_was_cancelled_elsewhere(tmp_path: Path) -> None:
    async def slow() -> None:
        async for _ in client.watch_jobs():
            reading.set()
            await asyncio.Event().wait()

    async with (
        running_plane(tmp_path / "control.db") as running,
        AsyncClient(running.address) as client,
    ):
        reading = asyncio.Event()
        task = asyncio.create_task(slow())
        async with asyncio.timeout(30):
            await reading.wait()
        task.cancel()
        await asyncio.wait([task])
        del task
        gc.collect()
        await eventually(lambda: running.plane.watches.count == 0, "all watches have ended", 30)
