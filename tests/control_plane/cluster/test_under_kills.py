"""Servers and the database are killed again and again; what was promised holds all the same."""

from __future__ import annotations

import asyncio
import contextlib
import random
import signal
from collections import defaultdict
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import grpc
import pytest

from midcourse.control.v1 import control_pb2 as pb
from midcourse.control.v1 import update_pb2
from tests.support.plane import Callers, callers, request
from tests.support.postgres import PostgresServer
from tests.support.processes import Process, free_port, serve
from tests.support.use_cases import eventually
from trainer_agent.simulate import LightJobs

T = TypeVar("T")

JOBS = 4
SECONDS = 25.0
PASSING = (
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.CANCELLED,
)


@dataclass
class History:
    """What callers and a watcher have seen.

    Attributes:
        answered: (job, revision) of each request that was answered, with the value asked for.
        watching: The watch has a position to go on from, so that nothing escapes it from now on.
        watched: (position, job, revision, state) of each change that the watch has told of.
    """

    answered: dict[tuple[str, int], float] = field(default_factory=dict)
    watched: list[tuple[str, str, int, int]] = field(default_factory=list)
    watching: asyncio.Event = field(default_factory=asyncio.Event)


class Cluster:
    """Servers as processes, on ports that they keep."""

    def __init__(self, database: str, directory: Path, count: int) -> None:
        self._database = database
        self._directory = directory
        self.ports = [free_port() for _ in range(count)]
        self._running: dict[int, Process] = {}
        for port in self.ports:
            (directory / str(port)).mkdir()
            self.start(port)

    @property
    def addresses(self) -> list[str]:
        return [f"127.0.0.1:{port}" for port in self.ports]

    def start(self, port: int) -> None:
        self._running[port] = serve(
            port,
            self._directory / str(port),
            database=self._database,
            heartbeat_interval=1.0,
            log_level="warning",
        )

    def kill(self, port: int) -> None:
        self._running[port].end()

    def supervise(self) -> None:
        """Starts what has ended by itself, as it could not open the database."""
        for port, process in self._running.items():
            if process.exit_code is not None:
                self.start(port)

    def end(self) -> None:
        for process in self._running.values():
            process.end()

    def check_logs(self) -> None:
        """Nothing has surprised a server."""
        for port, process in self._running.items():
            told = process.log.read_text(errors="replace")
            assert "Traceback" not in told, f"{port}: {told[told.index('Traceback') - 2_000 :]}"

    def tails(self) -> str:
        return "\n".join(process.tail() for process in self._running.values())


async def through_any(to: list[Callers], call: Callable[[Callers], Awaitable[T]]) -> T:
    """Calls servers until one answers."""
    while True:
        try:
            return await call(random.choice(to))
        except grpc.aio.AioRpcError as error:
            if error.code() not in PASSING:
                raise
        await asyncio.sleep(0.05)  # between two tries


async def send(to: list[Callers], job: str, history: History, ended: asyncio.Event) -> None:
    """Sends one update after another, each until it is answered."""
    number = 0
    while not ended.is_set():
        number += 1
        value = random.uniform(1e-4, 4e-4)
        asked = request(job, value, request_id=f"{job}-{number}")

        async def call(
            server: Callers, asked: pb.UpdateParametersRequest = asked
        ) -> update_pb2.Update:
            answer: pb.UpdateParametersResponse
            answer = await server.control.UpdateParameters(asked, timeout=5)
            return answer.update

        update = await through_any(to, call)
        assert (job, update.revision) not in history.answered
        history.answered[job, update.revision] = value
        await asyncio.sleep(random.uniform(0.0, 0.1))


async def watch(to: list[Callers], history: History) -> None:
    """Watches all jobs, going on where it was whenever a server ends it."""
    position = ""
    while True:
        server = random.choice(to)
        with contextlib.suppress(grpc.aio.AioRpcError):
            async for event in server.control.WatchJobs(pb.WatchJobsRequest(position=position)):
                position = event.position or position
                if position:
                    history.watching.set()
                if event.HasField("update") and event.position:
                    told = event.update
                    history.watched.append(
                        (event.position, event.job.name, told.revision, told.state)
                    )
        await asyncio.sleep(0.05)  # between two tries


async def kill(
    cluster: Cluster, database: PostgresServer, ended: asyncio.Event, seconds: float
) -> None:
    """Kills one thing after another for a while; all of it is there again at the end."""
    loop = asyncio.get_running_loop()
    end = loop.time() + seconds
    turn = 0
    while loop.time() < end:
        turn += 1
        if turn % 3:
            port = random.choice(cluster.ports)
            await asyncio.to_thread(cluster.kill, port)
            await asyncio.sleep(random.uniform(0.0, 1.0))
            cluster.start(port)
        else:
            number = random.choice([signal.SIGINT, signal.SIGQUIT])
            await asyncio.to_thread(database.stop, number)
            await asyncio.sleep(random.uniform(0.0, 1.0))
            await asyncio.to_thread(database.start)
        await asyncio.sleep(random.uniform(0.5, 2.5))
        cluster.supervise()
    ended.set()


async def updates_of(to: list[Callers], job: str) -> list[update_pb2.Update]:
    """All updates of a job, oldest first."""

    async def call(server: Callers) -> list[update_pb2.Update]:
        found: list[update_pb2.Update] = []
        asked = pb.ListUpdatesRequest(parent=f"jobs/{job}", page_size=1_000)
        while True:
            page = await server.control.ListUpdates(asked, timeout=10)
            found += page.updates
            if not page.next_page_token:
                return sorted(found, key=lambda update: update.revision)
            asked.page_token = page.next_page_token

    return await through_any(to, call)


async def settled(to: list[Callers], job: str) -> list[update_pb2.Update]:
    """All updates of a job, once none of them is open."""
    open_states = (update_pb2.UPDATE_STATE_PENDING, update_pb2.UPDATE_STATE_DELIVERED)
    async with asyncio.timeout(60):
        while True:
            found = await updates_of(to, job)
            if all(update.state not in open_states for update in found):
                return found
            await asyncio.sleep(0.1)  # between two looks


@pytest.mark.long
async def test_updates_and_watches_hold_while_everything_is_killed(
    postgres_server: PostgresServer, tmp_path: Path
) -> None:
    history, ended = History(), asyncio.Event()
    with postgres_server.empty_database() as address:
        cluster = Cluster(address, tmp_path, 3)
        try:
            async with contextlib.AsyncExitStack() as stack:
                to = [await stack.enter_async_context(callers(a)) for a in cluster.addresses]
                jobs = await stack.enter_async_context(
                    LightJobs(",".join(cluster.addresses), JOBS, step_time=0.02, report_every=0.2)
                )
                names = [job.spec.job_id for job in jobs]
                watching = asyncio.create_task(watch(to, history))
                await asyncio.wait_for(history.watching.wait(), 60)
                sending = [asyncio.create_task(send(to, n, history, ended)) for n in names]
                await kill(cluster, postgres_server, ended, SECONDS)
                await asyncio.wait_for(asyncio.gather(*sending), 60)
                found = {name: await settled(to, name) for name in names}
                last = {(n, u.revision) for n, all_ in found.items() for u in all_}

                def told() -> set[tuple[str, int]]:
                    return {
                        (job.removeprefix("jobs/"), revision)
                        for _, job, revision, state in history.watched
                        if state == update_pb2.UPDATE_STATE_APPLIED
                    }

                await eventually(lambda: told() >= last, "every update in the watch", 60)
                watching.cancel()
                await asyncio.wait([watching])
                values = {job.spec.job_id: job.values["learning_rate"] for job in jobs}
            check(history, found, values)
            cluster.check_logs()
        except BaseException:
            print(cluster.tails())
            raise
        finally:
            cluster.end()


def check(
    history: History, found: dict[str, list[update_pb2.Update]], values: Mapping[str, object]
) -> None:
    """The promises, by their names in docs/guarantees.md."""
    assert len(history.answered) > 50, "hardly anything was asked for"
    by_job: defaultdict[str, dict[int, float]] = defaultdict(dict)
    for (job, revision), value in history.answered.items():
        by_job[job][revision] = value
    for job, updates in found.items():
        # durable, idempotent: what was answered is there, as it was asked for, once.
        asked = {u.revision: u.spec.changes[0].set.value.number for u in updates}
        assert by_job[job].items() <= asked.items()
        assert len({u.request_id for u in updates}) == len(updates)
        # ordered: without gaps.
        assert [u.revision for u in updates] == list(range(1, len(updates) + 1))
        # once, in order, truthful: each found what the one before it had left.
        assert {u.state for u in updates} == {update_pb2.UPDATE_STATE_APPLIED}
        assert not any(u.reapplied for u in updates)
        now = updates[0].applied.transitions[0].old_value.number
        for update in updates:
            moved = update.applied.transitions[0]
            assert moved.old_value.number == now, update
            now = moved.new_value.number
            assert now == asked[update.revision]
        assert values[job] == now
        steps = [u.applied.step for u in updates]
        assert steps == sorted(steps)
    # watchable: each change once; as they are shown as they are by then, states only grow.
    positions = [position for position, *_ in history.watched]
    assert len(set(positions)) == len(positions)
    newest: dict[tuple[str, int], int] = {}
    for _, job, revision, state in history.watched:
        assert state >= newest.get((job, revision), 0)
        newest[job, revision] = state
