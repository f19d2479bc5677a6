"""A database that was put back to an older state, under runs that went on meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import sqlite3
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from control_plane.client import AsyncClient, NotFoundError, OutOfRangeError
from midcourse.control.v1 import update_pb2
from tests.support.plane import running_plane
from tests.support.processes import free_port
from trainer_agent.simulate import LightJob, LightJobs


@dataclass
class Site:
    """A control plane at one address with one file, which can be backed up and put back."""

    folder: Path
    port: int

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    @contextlib.asynccontextmanager
    async def serving(self) -> AsyncIterator[AsyncClient]:
        async with (
            running_plane(self.folder / "control.db", listen=self.address, heartbeat_interval=0.5),
            AsyncClient(self.address) as client,
        ):
            yield client

    def back_up(self) -> None:
        """As docs/operations.md says, while the server runs."""
        with (
            contextlib.closing(sqlite3.connect(self.folder / "control.db")) as source,
            contextlib.closing(sqlite3.connect(self.folder / "backup.db")) as target,
        ):
            source.backup(target)

    def restore(self) -> None:
        """As docs/operations.md says, while no server runs."""
        for suffix in ("-wal", "-shm"):
            (self.folder / f"control.db{suffix}").unlink(missing_ok=True)
        shutil.copyfile(self.folder / "backup.db", self.folder / "control.db")


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path, free_port())


@contextlib.asynccontextmanager
async def one_job(site: Site) -> AsyncIterator[LightJob]:
    async with LightJobs(site.address, step_time=0.01, report_every=0.1) as jobs:
        yield jobs[0]


async def reconnected(job: LightJob, sessions: int) -> None:
    await job.until(lambda: job.connected and job.sessions > sessions, 60)


async def test_a_new_update_is_not_taken_for_one_that_the_backup_lacks(site: Site) -> None:
    async with contextlib.AsyncExitStack() as stack:
        async with site.serving() as plane:
            job = await stack.enter_async_context(one_job(site))
            await plane.set(job.job_id, learning_rate=1e-3, wait=True, wait_timeout=30)
            site.back_up()
            lost = await plane.set(job.job_id, learning_rate=2e-3, wait=True, wait_timeout=30)
            assert lost.revision == 2
            sessions = job.sessions
        site.restore()
        async with site.serving() as plane:
            await reconnected(job, sessions)
            shown = await plane.get_job(job.job_id)
            rate = next(p for p in shown.effective.parameters if p.parameter == "learning_rate")
            assert rate.value.number == 2e-3, "what is in force is what the trainer says"
            with pytest.raises(NotFoundError):
                await plane.get_update(job.job_id, 2)
            update = await plane.set(job.job_id, weight_decay=0.3, wait=True, wait_timeout=30)
            assert update.revision == 3
            (moved,) = update.applied.transitions
            assert (moved.parameter, moved.new_value.number) == ("weight_decay", 0.3)
            assert job.values["weight_decay"] == 0.3
            assert update.applied.step > 0


async def test_nor_for_one_that_was_refused_after_the_backup(site: Site) -> None:
    async with contextlib.AsyncExitStack() as stack:
        async with site.serving() as plane:
            job = await stack.enter_async_context(one_job(site))
            site.back_up()
            refused = await plane.set(job.job_id, learning_rate=1e-3, at_step=10**9)
            await plane.cancel_update(job.job_id, refused.revision)
            await job.until(lambda: refused.revision in job.outcomes and job.everything_stored)
            sessions = job.sessions
        site.restore()
        async with site.serving() as plane:
            await reconnected(job, sessions)
            update = await plane.set(job.job_id, weight_decay=0.3, wait=True, wait_timeout=30)
            assert update.state == update_pb2.UPDATE_STATE_APPLIED
            assert update.revision == 2
            assert job.values["weight_decay"] == 0.3


async def test_a_watch_does_not_go_on_from_what_the_backup_lacks(site: Site) -> None:
    async with contextlib.AsyncExitStack() as stack:
        async with site.serving() as plane:
            job = await stack.enter_async_context(one_job(site))
            site.back_up()
            for rate in (1e-3, 2e-3, 3e-3, 4e-3, 5e-3):
                await plane.set(job.job_id, learning_rate=rate, wait=True, wait_timeout=30)
            position = ""
            watch = plane.watch_jobs()
            async with asyncio.timeout(30):
                async for event in watch:
                    position = event.position
                    if position:
                        break
            await job.kill()
        site.restore()
        async with site.serving() as plane:
            with pytest.raises(OutOfRangeError):
                async with asyncio.timeout(30):
                    await anext(aiter(plane.watch_jobs(position=position)))
