"""Each of server, agent and trainer dies at each failpoint, and everything comes right again."""

from __future__ import annotations

import asyncio
import os
import random
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import pytest

from grpc_runtime import failpoints
from midcourse.control.v1 import control_pb2 as pb
from midcourse.control.v1 import update_pb2
from tests.faults.callers import Caller, Fleet, Servers
from tests.faults.cluster import Cluster, running_cluster
from tests.faults.history import History, recording
from tests.faults.lines import LINE
from tests.faults.looped_run import Order, train
from tests.faults.records import (
    Answered,
    Asked,
    Change,
    Quiet,
    StoredUpdate,
)
from tests.faults.serving import PRELOADED
from tests.faults.store_reader import engine_of, stored_records
from tests.faults.validators import validate
from tests.support.forked import Forked
from tests.support.processes import agents_of
from tests.support.use_cases import eventually

SECONDS = 120.0
OF_SERVERS = {"commit", "wakeup", "session"}
NTH = {"trainer.checkpoint": 3, "trainer.checkpointed": 3, "commit.before": 4, "commit.after": 4}
OFTEN = ["trainer.applied"]
"""Those that are tried in each run of the tests; the others are only more of the same."""


@pytest.fixture(scope="module")
def forked() -> Iterator[Forked]:
    # Of both kinds of processes: there is one fork server, with what is loaded first.
    nursery = Forked(*PRELOADED, "tests.faults.looped_run", "torch.distributed")
    yield nursery
    nursery.close()


class Trainer:
    """A training process that is started again when it has died."""

    def __init__(self, forked: Forked, order: Order) -> None:
        self.order = order
        self._forked = forked
        self.starts = 0

    async def run(self) -> None:
        while True:
            self.starts += 1
            process = self._forked.start(train, self.order)
            try:
                await eventually(partial(_has_ended, process), "it has ended", SECONDS)
            finally:
                if process.is_alive():
                    os.kill(process.pid, signal.SIGKILL)
                    process.join(30)
            if self.order.end.exists():
                return


def _has_ended(process: Any) -> bool:
    return not process.is_alive()


@asynccontextmanager
async def alive(trainer: Trainer) -> AsyncIterator[None]:
    running = asyncio.create_task(trainer.run())
    try:
        yield
        trainer.order.end.touch()
        async with asyncio.timeout(SECONDS):
            await running
    finally:
        running.cancel()
        await asyncio.wait([running])
        for pid in agents_of(trainer.order.job):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


class Fixed(Caller):
    """Changes what the loop has, by a fixed course."""

    def __init__(self, servers: Servers, job: str) -> None:
        fleet = Fleet({job: 0}, keep=frozenset({job}))
        super().__init__("caller", servers, fleet, random.Random(job), 0.0)
        self.job = job

    def _changes(self, count: int) -> tuple[Change, ...]:
        made = [
            Change("gain", "multiply", self._rng.choice([0.5, 0.9, 1.1, 2.0])),
            Change("noise", "set", self._rng.uniform(0.1, 1.0)),
            Change("rounds", "set", self._rng.randint(1, 64)),
        ]
        self._rng.shuffle(made)
        return tuple(made[:count])

    def _draw(self) -> Asked:
        return self._asked(jobs=(self.job,), changes=self._changes(self._rng.randint(1, 3)))


async def until_settled(servers: Servers, job: str) -> None:
    asked = pb.ListUpdatesRequest(
        parent=f"jobs/{job}",
        states=[update_pb2.UPDATE_STATE_PENDING, update_pb2.UPDATE_STATE_DELIVERED],
    )
    while True:
        with suppress(grpc.aio.AioRpcError):
            found = await servers.at(servers.addresses[0]).ListUpdates(asked, timeout=5)
            if not found.updates:
                return
        await asyncio.sleep(0.05)  # between two looks


async def until_known(cluster: Cluster, servers: Servers, job: str) -> None:
    stub = servers.at(cluster.addresses[0])
    while True:
        with suppress(grpc.aio.AioRpcError):
            await stub.GetJob(pb.GetJobRequest(name=f"jobs/{job}"), timeout=5)
            return
        await asyncio.sleep(0.05)  # between two looks


async def have(point: str, forked: Forked, directory: Path) -> History:
    """A run in which somebody dies at this point, to its end."""
    job = point.replace(".", "-").replace("_", "-")
    note = directory / point
    armed = {
        failpoints.VARIABLE: f"{point}=crash@{NTH.get(point, 2)}",
        failpoints.NOTES: str(directory),
    }
    of_server = point.partition(".")[0] in OF_SERVERS
    database = str(directory / "control.db")
    with recording(directory / "history.jsonl") as recorder:
        async with running_cluster(
            database, directory, 1, None, env=armed if of_server else None
        ) as cluster:
            servers = Servers(cluster.addresses, recorder)
            order = Order(directory, job, cluster.addresses[0], {} if of_server else armed)
            trainer = Trainer(forked, order)
            async with alive(trainer), asyncio.timeout(SECONDS):
                await until_known(cluster, servers, job)
                caller = Fixed(servers, job)
                while not note.exists():
                    await caller.request()
                for _ in range(5):
                    await caller.request()
                await until_settled(servers, job)
            await servers.close()
            assert trainer.starts == 1 + point.startswith("trainer.")
        # What the trainer says last is how it was at rest.
        recorder.add(Quiet(position=0, watchers=()))
        for line in order.records.read_bytes().splitlines():
            recorder.add(LINE.validate_json(line))
        engine = engine_of(database)
        for record in stored_records(engine):
            recorder.add(record)
        engine.dispose()
    return History(recorder.records)


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    "point",
    [
        pytest.param(point, marks=[] if point in OFTEN else pytest.mark.long)
        for point in failpoints.POINTS
    ],
)
async def test_whoever_dies_there_loses_nothing(point: str, forked: Forked, tmp_path: Path) -> None:
    history = await have(point, forked, tmp_path)
    found = validate(history)
    assert not found, "\n".join(map(str, found[:10]))
    assert len(history.of(Answered)) >= 5
    states = {update.state for update in history.of(StoredUpdate)}
    assert states == {"applied"}, states
