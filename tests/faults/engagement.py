"""One run: jobs, callers and watchers on a cluster, faults meanwhile, and quiet at the end."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import tempfile
import time
from collections.abc import (
    AsyncIterator,
    Callable,
    Coroutine,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

from midcourse.control.v1 import control_pb2 as pb
from midcourse.control.v1 import update_pb2
from tests.faults.breaking import READY_SECONDS, Breaker
from tests.faults.callers import Caller, Fleet, Servers, Watcher
from tests.faults.checkpoints import ANEW, Checkpoints
from tests.faults.cluster import Cluster, running_cluster
from tests.faults.history import Recorder
from tests.faults.process_job import ProcessJob
from tests.faults.records import Quiet, Run
from tests.faults.schedule import schedule
from tests.faults.store_reader import engine_of, newest_positions, stored_records
from tests.faults.trainers import RecordedJob
from tests.support.postgres import PostgresServer
from tests.support.use_cases import eventually
from trainer_agent.simulate import LightJobSpec
from trainer_agent.steering.roll_back import HandOver

_LOOK = 0.05


@dataclass(frozen=True, slots=True)
class Setup:
    """What a run is like.

    Attributes:
        seed: What faults and requests are drawn from. (When exactly they come, the machine says.)
        seconds: For how long there are faults and requests.
        replicas: Servers; of more than one, or with `postgres`, the database is PostgreSQL.
        postgres: Whether the database is PostgreSQL, and not a file.
        jobs: Light jobs.
        processes: Jobs that are processes of their own, with agents.
        callers: Callers that send all the time.
        pause: Mean seconds between two requests of one caller.
        watchers: Watchers of all jobs; there are as many of one job each.
        settle: Longest time until everything is settled at the end, in seconds.
    """

    seed: int = 0
    seconds: float = 2.0
    replicas: int = 3
    postgres: bool = True
    jobs: int = 6
    processes: int = 0
    callers: int = 3
    pause: float = 0.1
    watchers: int = 1
    settle: float = 60.0


class NotSettledError(Exception):
    """Faults had ended, and not everything came to rest within the time that it has."""


async def engage(setup: Setup, recorder: Recorder, postgres: PostgresServer | None = None) -> None:
    """Has a run, and records it.

    Args:
        setup: What it is like.
        recorder: Takes what is seen.
        postgres: Where to make a database, if it is to be PostgreSQL; None: one of its own.

    Raises:
        NotSettledError: Not everything has come to rest in time.
    """
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="faults-")))
        database = str(directory / "control.db")
        if setup.postgres:
            if postgres is None:
                postgres = PostgresServer()
                stack.callback(postgres.end)
            database = stack.enter_context(postgres.empty_database())
        recorder.add(
            Run(
                database="postgresql" if setup.postgres else "sqlite",
                replicas=setup.replicas,
                jobs=setup.jobs,
                seed=setup.seed,
                seconds=setup.seconds,
            )
        )
        unsettled: NotSettledError | None = None
        async with running_cluster(database, directory, setup.replicas, postgres) as cluster:
            try:
                await _Engagement(setup, cluster, recorder, directory).run()
            except NotSettledError as error:
                # What is in the store tells why, perhaps.
                unsettled = error
                print(*cluster.logs(), sep="\n")
            except BaseException:
                print(*cluster.logs(), sep="\n")
                raise
        engine = engine_of(database)
        try:
            for record in stored_records(engine):
                recorder.add(record)
        finally:
            engine.dispose()
        if unsettled is not None:
            raise unsettled


class _Engagement:
    def __init__(self, setup: Setup, cluster: Cluster, recorder: Recorder, directory: Path) -> None:
        self._setup = setup
        self._cluster = cluster
        self._recorder = recorder
        self._servers = Servers(cluster.addresses, recorder)
        self._jobs: dict[str, RecordedJob] = {}
        self._always: list[asyncio.Task[None]] = []
        self._starts = self._rng("starts")
        self._specs = {
            f"light-{number:02d}": LightJobSpec(
                job_id=f"light-{number:02d}",
                control_plane=",".join(cluster.addresses),
                step_time=0.02,
                report_every=0.5,
                seed=number,
            )
            for number in range(setup.jobs)
        }
        self._checkpoints = {name: Checkpoints(directory / name) for name in self._specs}
        self._processes = [
            ProcessJob(
                # Agents are found by the name of their job, on all of the machine.
                f"process-{os.getpid()}-{number}",
                ",".join(cluster.addresses),
                directory / f"process-{number}",
                recorder,
                self._rng(f"process/{number}"),
            )
            for number in range(setup.processes)
        ]
        self._checkpoints |= {each.job_id: each.checkpoints for each in self._processes}
        names = list(self._specs)
        self._fleet = Fleet(
            _Steps(self._jobs, self._processes),
            # What an impostor repeats may be older than what was withdrawn since.
            keep=frozenset(names[::3]),
            saved=lambda name: self._checkpoints[name].names,
        )
        self._watchers = [
            Watcher(f"watcher-{n}", self._servers, self._rng(f"watcher/{n}"), job)
            for n, job in enumerate([""] * setup.watchers + names[: setup.watchers])
        ]
        self._callers = [
            Caller(f"caller-{n}", self._servers, self._fleet, self._rng(f"caller/{n}"), setup.pause)
            for n in range(setup.callers)
        ]

    def _rng(self, what: str) -> random.Random:
        return random.Random(f"{self._setup.seed}/{what}")

    async def run(self) -> None:
        """From the start of the servers until all is quiet."""
        async with contextlib.AsyncExitStack() as stack:
            stack.push_async_callback(self._servers.close)
            stack.push_async_callback(self._end_jobs)
            for name in self._specs:
                self._start_job(name)
            for process in self._processes:
                await stack.enter_async_context(process.running())
            await self._until(self._all_served, "every job has a session", READY_SECONDS)
            self._always = await stack.enter_async_context(
                _tasks([self._again(), *(watcher.run() for watcher in self._watchers)])
            )
            ended = asyncio.Event()
            sending = [asyncio.create_task(caller.run(ended)) for caller in self._callers]
            try:
                await self._faults()
                ended.set()
                async with asyncio.timeout(self._setup.settle):
                    await asyncio.gather(*sending)
                    # Nobody else ends a pause of a caller whose job went away meanwhile.
                    await self._resume_all()
                await self._quiet()
            except TimeoutError:
                raise NotSettledError("callers got no answer though faults had ended") from None
            finally:
                for task in sending:
                    task.cancel()
                await asyncio.wait(sending)

    # ------------------------------------------------------------------------------------ jobs

    def _start_job(self, name: str) -> None:
        """Starts a job: from its newest checkpoint, if there is one, or anew."""
        anew = self._starts.random() < ANEW
        self._begin(name, None if anew else self._checkpoints[name].newest)

    def _begin(self, name: str, resume: Path | None, left: HandOver | None = None) -> None:
        job = self._jobs[name] = RecordedJob(
            self._specs[name], self._recorder, self._checkpoints[name], resume, left
        )
        job.start()

    async def _again(self) -> None:
        """Has jobs go on that went back to a checkpoint, or were stopped; for ever."""
        while True:
            for name, job in list(self._jobs.items()):
                if job.killed:
                    continue  # whoever did that starts it again
                if job.went_back:
                    await job.kill()
                    left = self._checkpoints[name].take_over()
                    self._begin(name, Path(left.checkpoint), left)
                elif job.finished:
                    await job.end(self._setup.settle)
                    if self._jobs[name] is job:
                        self._start_job(name)
            await asyncio.sleep(_LOOK)

    async def _end_jobs(self) -> None:
        await asyncio.gather(*(job.kill() for job in self._jobs.values()))

    def _fail_with_others(self) -> None:
        """Raises what has ended somebody who is to go on for ever."""
        for task in self._always:
            if task.done():
                task.result()

    def _all_served(self) -> bool:
        self._fail_with_others()
        return all(job.connected for job in self._jobs.values())

    # ---------------------------------------------------------------------------------- faults

    async def _faults(self) -> None:
        """Breaks one thing after another; all of it is mended when this returns."""
        setup = self._setup
        begun = time.monotonic()
        end = begun + setup.seconds
        breaker = Breaker(
            self._cluster,
            self._servers,
            self._jobs,
            self._processes,
            self._fleet.keep,
            self._start_job,
            end,
        )
        async with asyncio.TaskGroup() as group:
            for planned in schedule(
                setup.seed,
                setup.seconds,
                postgres=setup.postgres,
                processes=setup.processes > 0,
            ):
                await asyncio.sleep(max(0.0, begun + planned.at - time.monotonic()))
                group.create_task(breaker.run(planned))
            await asyncio.sleep(max(0.0, end - time.monotonic()))

    # ----------------------------------------------------------------------------------- quiet

    def _instances(self) -> list[str]:
        every: list[RecordedJob | ProcessJob] = [*self._jobs.values(), *self._processes]
        return [each.instance_id for each in every]

    async def _resume_all(self) -> None:
        for name in self._fleet.step:
            await self._callers[0].resume(name)

    async def _quiet(self) -> None:
        """Waits until everything is settled, stored and told of."""
        seconds = self._setup.settle
        await self._until(self._all_served, "every job has a session again", seconds)
        engine = engine_of(self._cluster.database)
        try:
            end = time.monotonic() + seconds
            asked: list[str] = []
            while time.monotonic() < end:
                if await self._nothing_open() and await self._all_known() and self._all_rest():
                    if asked != (now := self._instances()):
                        # Once that is settled too, all that it was owed has reached it.
                        await self._resume_all()
                        asked = now
                        continue
                    positions = await asyncio.to_thread(newest_positions, engine)
                    if self._told(positions):
                        names = tuple(watcher.name for watcher in self._watchers)
                        last = max(positions.values())
                        self._recorder.add(Quiet(position=last, watchers=names))
                        return
                self._fail_with_others()
                await asyncio.sleep(_LOOK)
        finally:
            engine.dispose()
        raise NotSettledError(f"not within {seconds:g} s: {list(self._unsettled())}")

    async def _nothing_open(self) -> bool:
        asked = pb.ListUpdatesRequest(
            parent="jobs/-",
            states=[update_pb2.UPDATE_STATE_PENDING, update_pb2.UPDATE_STATE_DELIVERED],
            page_size=10,
        )
        self._open: list[str] = []
        for address in self._servers.addresses:
            try:
                found = await self._servers.at(address).ListUpdates(asked, timeout=3)
            except grpc.aio.AioRpcError:
                return False
            self._open += [each.name for each in found.updates]
        return not self._open

    async def _all_known(self) -> bool:
        """Whether the store has heard of every process that trains by now."""
        for process in self._processes:
            wanted = pb.GetJobRequest(name=f"jobs/{process.job_id}")
            try:
                found = await self._servers.at(self._servers.addresses[0]).GetJob(wanted, timeout=3)
            except grpc.aio.AioRpcError:
                return False
            if found.job.session.instance_id != process.instance_id:
                return False
        return True

    def _all_rest(self) -> bool:
        every: list[RecordedJob | ProcessJob] = [*self._jobs.values(), *self._processes]
        return self._all_served() and all(each.rests for each in every)

    def _told(self, positions: Mapping[str, int]) -> bool:
        return all(
            (watcher.position or 0)
            >= (positions.get(watcher.job, 0) if watcher.job else max(positions.values()))
            for watcher in self._watchers
        )

    def _unsettled(self) -> Iterator[str]:
        yield f"open: {self._open}"
        yield from (repr(job) for job in self._jobs.values() if not job.rests)
        yield from (f"{w.name} at {w.position}" for w in self._watchers)

    async def _until(self, condition: Callable[[], bool], what: str, seconds: float) -> None:
        try:
            await eventually(condition, what, seconds)
        except AssertionError:
            jobs = [repr(job) for job in self._jobs.values() if not job.connected]
            raise NotSettledError(f"not within {seconds:g} s: {what}; {jobs}") from None


class _Steps(Mapping[str, int]):
    """The steps that jobs have done by now."""

    def __init__(self, jobs: dict[str, RecordedJob], processes: Sequence[ProcessJob]) -> None:
        self._jobs = jobs
        self._processes = {each.job_id: each for each in processes}

    def __getitem__(self, job: str) -> int:
        return self._processes[job].step if job in self._processes else self._jobs[job].step

    def __iter__(self) -> Iterator[str]:
        return iter((*self._jobs, *self._processes))

    def __len__(self) -> int:
        return len(self._jobs) + len(self._processes)


@contextlib.asynccontextmanager
async def _tasks(
    coroutines: Iterable[Coroutine[Any, Any, None]],
) -> AsyncIterator[list[asyncio.Task[None]]]:
    tasks = [asyncio.create_task(each) for each in coroutines]
    try:
        yield tasks
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
