"""Where the scenes of mutants are set: servers, jobs, callers and watchers, all recorded."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

from sqlalchemy import Engine

from grpc_runtime.errors import StatusError
from tests.faults.callers import Servers, Watcher
from tests.faults.checkpoints import Checkpoints
from tests.faults.history import Recorder
from tests.faults.records import (
    Answered,
    Asked,
    Change,
    Quiet,
    StoredUpdate,
    Told,
)
from tests.faults.store_reader import engine_of, newest_positions, stored_records
from tests.faults.trainers import RecordedJob
from tests.support.plane import RunningPlane, running_plane
from tests.support.postgres import PostgresServer
from tests.support.use_cases import eventually
from trainer_agent.parameters import Value
from trainer_agent.parameters.user import Parameter
from trainer_agent.simulate import LightJobSpec
from trainer_agent.steering.roll_back import HandOver

SECONDS = 60.0
"""Longest time until something that has to come is there."""
MUTE_SECONDS = 3.0
"""After so long a watcher of a mutant that tells nothing is not waited for any more."""

HALVE = Change("learning_rate", "multiply", 0.5)
DECAY = Change("weight_decay", "set", 0.25)

Parameters = Callable[[dict[str, Value], Callable[[], int]], dict[str, Parameter]]
"""Makes live parameters of a job's values, and of what tells the step that it is at."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a scene is set.

    Attributes:
        directory: For what is written.
        mutant: Name of the mutant; empty: there is none.
        postgres: A database's server, for scenes that need one.
    """

    directory: Path
    mutant: str
    postgres: PostgresServer | None = None


class Stage:
    """Servers, jobs, callers and watchers, all of whom are recorded."""

    def __init__(self, recorder: Recorder, addresses: list[str], engine: Engine) -> None:
        self.recorder = recorder
        self.addresses = addresses
        self.jobs: dict[str, RecordedJob] = {}
        self.watchers: list[Watcher] = []
        self._servers = [Servers([address], recorder) for address in addresses]
        self._engine = engine
        self._watching: list[asyncio.Task[None]] = []
        self._rng = random.Random(0)

    async def job(
        self,
        name: str = "a",
        *,
        at: int = 0,
        step_time: float = 0.02,
        parameters: Parameters | None = None,
        checkpoints: Checkpoints | None = None,
        resume: Path | None = None,
        left: HandOver | None = None,
    ) -> RecordedJob:
        """A job that is served by one of the servers; `checkpoints` as `RecordedJob` takes them."""
        spec = LightJobSpec(job_id=name, control_plane=self.addresses[at], step_time=step_time)
        made: list[RecordedJob] = []
        with contextlib.ExitStack() as stack:
            if parameters is not None:
                theirs = parameters  # of the script's own
                stack.enter_context(
                    mock.patch(
                        "trainer_agent.simulate.job.light_parameters",
                        lambda values: theirs(values, lambda: made[0]._step if made else 0),
                    )
                )
            made.append(RecordedJob(spec, self.recorder, checkpoints, resume, left))
        job = self.jobs[name] = made[0]
        job.start()
        await eventually(lambda: job.connected, "the job is served", SECONDS)
        return job

    def asked(self, *changes: Change, jobs: tuple[str, ...] = ("a",), **fields: Any) -> Asked:
        """A request, with an id of its own unless one is given."""
        given: dict[str, Any] = {
            "method": "update" if len(jobs) == 1 else "batch",
            "request_id": f"request-{self.recorder.number()}",
            **fields,
        }
        return Asked(caller="caller", call=0, to="", jobs=jobs, changes=changes, **given)

    async def send(self, asked: Asked, at: int = 0) -> Answered | StatusError:
        """Sends a request to one of the servers."""
        return await self._servers[at].send(asked, self._rng)

    async def accepted(self, asked: Asked) -> dict[str, int]:
        """Sends a request that is accepted; returns the revisions."""
        answer = await self.send(asked)
        assert isinstance(answer, Answered), answer
        return answer.revisions

    async def update(self, *changes: Change, job: str = "a", **fields: Any) -> int:
        """Has an update applied, or whatever else becomes of it; returns its revision."""
        revisions = await self.accepted(self.asked(*changes, jobs=(job,), **fields))
        await self.settled(revisions)
        return revisions[job]

    async def settled(self, revisions: dict[str, int]) -> None:
        """Waits until jobs say how updates ended."""
        for name, revision in revisions.items():
            await self.jobs[name].outcome(revision, SECONDS)

    async def watch(self, job: str = "", at: int = 0) -> None:
        """Has somebody watch, from now on."""
        number = len(self.watchers)
        watcher = Watcher(f"watcher-{number}", self._servers[at], self._rng, job)
        self.watchers.append(watcher)
        self._watching.append(asyncio.create_task(watcher.run()))
        await eventually(lambda: watcher.position is not None, "the watch has begun", SECONDS)

    def told(self, revision: int) -> list[Told]:
        """What sessions have said so far of how an update ended."""
        records = self.recorder.records
        return [r for r in records if isinstance(r, Told) and r.revision == revision]

    async def quiet(self, *, patience: float = SECONDS) -> None:
        """Waits until all is settled and told of.

        Args:
            patience: Longest time for watchers to be told; they are said to be all the same.
        """
        await eventually(self._at_rest, "all is settled", SECONDS)
        positions = newest_positions(self._engine)
        last = max(positions.values())
        with contextlib.suppress(AssertionError):  # that is for the validator to say
            await eventually(
                lambda: all(
                    (watcher.position or 0) >= (positions[watcher.job] if watcher.job else last)
                    for watcher in self.watchers
                ),
                "watchers are told of the end",
                patience,
            )
        self.recorder.add(
            Quiet(position=last, watchers=tuple(watcher.name for watcher in self.watchers))
        )

    def _at_rest(self) -> bool:
        return all(job.rests and job.connected for job in self.jobs.values()) and all(
            update.state not in ("pending", "delivered")
            for update in stored_records(self._engine)
            if isinstance(update, StoredUpdate)
        )

    async def close(self) -> None:
        """Ends everybody, and adds what is in the store."""
        for task in self._watching:
            task.cancel()
        if self._watching:
            await asyncio.wait(self._watching)
        await asyncio.gather(*(job.kill() for job in self.jobs.values()))
        await asyncio.gather(*(servers.close() for servers in self._servers))
        for record in stored_records(self._engine):
            self.recorder.add(record)


@contextlib.asynccontextmanager
async def stage_at(recorder: Recorder, addresses: list[str], database: str) -> AsyncIterator[Stage]:
    engine = engine_of(database)
    stage = Stage(recorder, addresses, engine)
    try:
        yield stage
    finally:
        await stage.close()
        engine.dispose()


@contextlib.asynccontextmanager
async def one_server(place: Place, recorder: Recorder) -> AsyncIterator[tuple[Stage, RunningPlane]]:
    """One server on a file, in this process."""
    database = str(place.directory / "control.db")
    async with (
        running_plane(database) as plane,
        stage_at(recorder, [plane.address], database) as stage,
    ):
        yield stage, plane


@contextlib.asynccontextmanager
async def two_servers(place: Place, recorder: Recorder) -> AsyncIterator[Stage]:
    """Two servers on PostgreSQL, in this process, which hear of each other only if they listen."""
    assert place.postgres is not None
    with place.postgres.empty_database() as database:
        async with (
            running_plane(database, poll_interval=300) as first,
            running_plane(database, poll_interval=300) as second,
            stage_at(recorder, [first.address, second.address], database) as stage,
        ):
            yield stage
