"""How long an update takes that one replica accepts and another has to deliver.

Two `midcourse serve` on one PostgreSQL that waits for its disk, each a process: from the call
at the one to the delivery on an agent's stream at the other. The floor is what the database
alone takes: a row and a notification committed on one connection, heard on another.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Iterator
from pathlib import Path

import psycopg
import uvloop

from tests.bench.report import Row, percentile
from tests.support.plane import callers
from tests.support.postgres import PostgresServer
from tests.support.processes import Process, free_port, serve

PAUSE = 0.005
"""Seconds between two updates: one at a time."""


def measure_floor(address: str, count: int) -> list[float]:
    """Milliseconds from a commit's beginning to its notification, for each."""
    taken = []
    with psycopg.connect(address) as writing, psycopg.connect(address, autocommit=True) as hearing:
        writing.execute("CREATE TABLE floor (number int)")
        writing.commit()
        hearing.execute("LISTEN floor")
        for number in range(count):
            begun = time.perf_counter()
            writing.execute("INSERT INTO floor VALUES (%s)", [number])
            writing.execute("NOTIFY floor")
            writing.commit()
            next(iter(hearing.notifies(stop_after=1)))
            taken.append((time.perf_counter() - begun) * 1e3)
            time.sleep(PAUSE)
        writing.execute("DROP TABLE floor")
        writing.commit()
    return taken


async def measure(job: str, at: str, through: str, count: int) -> list[float]:
    """Milliseconds from the call at one server to the delivery by the other, for each update."""
    taken = []
    warm = max(10, count // 10)
    async with callers(at) as agents, callers(through) as operators:
        agent = await agents.agent(job)
        for number in range(count + warm):
            begun = time.perf_counter()
            update, _ = await asyncio.gather(
                operators.update(job, value=1e-5 if number % 2 else 2e-5),
                agent.wait_for("delivery", number + 1),
            )
            if number >= warm:
                taken.append((time.perf_counter() - begun) * 1e3)
            # Without a receipt of its own, as agents do where it is applied at once.
            await agent.apply(update.revision)
            await asyncio.sleep(PAUSE)
        await agent.leave()
    return taken


@contextlib.contextmanager
def servers(database: str, directory: Path, count: int) -> Iterator[list[str]]:
    """The addresses of so many servers on one database."""
    ports = [free_port() for _ in range(count)]
    started: list[Process] = []
    try:
        for port in ports:
            (directory / str(port)).mkdir()
            started.append(
                serve(port, directory / str(port), database=database, log_level="warning")
            )
        addresses = [f"127.0.0.1:{port}" for port in ports]
        asyncio.run(_until_up(addresses))
        yield addresses
    finally:
        for process in started:
            process.end()


async def _until_up(addresses: list[str]) -> None:
    for address in addresses:
        async with callers(address) as to:
            await asyncio.wait_for(to.channel.channel_ready(), 60)


def rows(directory: Path, *, quick: bool) -> list[Row]:
    """The rows of an update through another replica."""
    count = 200 if quick else 1_000
    server = PostgresServer(durable=True)
    try:
        with (
            server.empty_database() as database,
            server.empty_database() as other,
            servers(database, directory, 2) as (at, through),
        ):
            floors: list[float] = []
            taken: list[float] = []
            for part in range(4):  # in turns, so that whatever else the machine does falls on both
                floors += measure_floor(other, count // 4)
                taken += uvloop.run(measure(f"bench-{part}", at, through, count // 4))
    finally:
        server.end()
    note = "commit, NOTIFY and push"
    return [
        Row(
            "update through another replica, p50",
            "ms",
            percentile(floors, 50),
            percentile(taken, 50),
            5.0,
            note,
        ),
        Row(
            "update through another replica, p99",
            "ms",
            percentile(floors, 99),
            percentile(taken, 99),
            25.0,
            note,
        ),
    ]
