"""Replicas of the control plane's use cases on one PostgreSQL database; no servers."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg import sql

from control_plane.store import open_store
from tests.support.postgres import PostgresServer
from tests.support.use_cases import Clock, UseCases


def clear(address: str) -> None:
    """Empties the tables, if there are any, and begins to count anew."""
    with psycopg.connect(address, autocommit=True) as connection:
        found = connection.execute(
            "SELECT table_name FROM information_schema.tables "
            "WHERE table_schema = 'public' AND table_name <> 'alembic_version'"
        ).fetchall()
        if found:
            names = sql.SQL(", ").join(sql.Identifier(name) for (name,) in found)
            connection.execute(sql.SQL("TRUNCATE {} RESTART IDENTITY").format(names))


@contextlib.contextmanager
def without_deadlocks(server: PostgresServer, address: str) -> Iterator[None]:
    """Fails where transactions have waited for each other in a circle, as these are repeated."""
    yield
    with server.session() as session:
        found = session.execute(
            "SELECT deadlocks, xact_commit FROM pg_stat_database WHERE datname = %s",
            [address.rpartition("/")[2]],
        ).fetchone()
    assert found is not None
    assert found[1] > 0
    assert found[0] == 0, "transactions have waited for each other in a circle"


@dataclass
class Replica:
    """The use cases of one server, and what hears for it of the others."""

    cases: UseCases
    following: asyncio.Task[None]

    async def die(self) -> None:
        """Ends without a word to anybody: nothing is recorded, nobody is told."""
        self.following.cancel()
        await asyncio.wait([self.following])
        await self.cases.store.close()


@contextlib.asynccontextmanager
async def replicas(
    address: str, count: int, clock: Clock, *, poll_interval: float = 30.0, **options: Any
) -> AsyncIterator[list[Replica]]:
    """So many replicas, which hear of one another by notifications alone, unless told otherwise."""
    async with contextlib.AsyncExitStack() as stack:
        opened = []
        for _ in range(count):
            store = await open_store(address, poll_interval=poll_interval)
            stack.push_async_callback(store.close)
            cases = UseCases(store, clock, **options)
            following = asyncio.create_task(store.follow(cases.bus.hear))
            replica = Replica(cases, following)
            stack.push_async_callback(_end, following)
            opened.append(replica)
        yield opened


async def _end(following: asyncio.Task[None]) -> None:
    if not following.cancelled():
        following.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await following
