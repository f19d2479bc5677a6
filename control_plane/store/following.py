"""Hearing of what other replicas write.

A commit with events sends a message without content, in the transaction itself: see the
trigger in the migration. Whoever hears it reads the events after the last one that it
knows. Messages that come while it reads are one more look. A message may be lost, with the
connection that listens; so it looks once more each time it has begun to listen, and now
and then without having heard anything.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from control_plane.store.events import CHANNEL
from control_plane.store.transaction import SqlTransaction
from grpc_runtime.logging import get_logger
from grpc_runtime.sql import DatabaseUnavailableError

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from control_plane.services.records import Event
    from grpc_runtime.sql import Database

_CHUNK = 1_000
_RETRY_SECONDS = 0.5
_JITTER = 0.5

_log = get_logger(__name__)


class Follower:
    """Reads the events of other replicas as they come."""

    def __init__(
        self, database: Database, replica: str, position: int, poll_interval: float
    ) -> None:
        """See `SqlStore`."""
        self._database = database
        self._replica = replica
        self._position = position
        self._poll_interval = poll_interval

    async def run(self, heard: Callable[[Sequence[Event] | None], None]) -> None:
        """Hands on the events of other replicas until cancelled.

        Args:
            heard: Is called with the events; None: some are not kept any more.
        """
        woken = asyncio.Event()
        failing = False
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._database.listen(CHANNEL, woken.set))
            while True:
                try:
                    while await self._read_on(heard):
                        pass
                    delay, failing = self._poll_interval, False
                except DatabaseUnavailableError as error:
                    if not failing:
                        _log.warning("can not hear of other replicas", error=str(error))
                    delay, failing = _RETRY_SECONDS, True
                try:
                    async with asyncio.timeout(delay * random.uniform(1 - _JITTER, 1)):  # noqa: S311 - spreads the load, no secret
                        await woken.wait()
                except TimeoutError:
                    pass  # time to look without having been called
                woken.clear()

    async def _read_on(self, heard: Callable[[Sequence[Event] | None], None]) -> bool:
        """Hands on what is new; returns whether there is more."""

        def work(connection: Connection) -> tuple[list[Event], int, int]:
            tx = SqlTransaction(connection, origin=self._replica, writing=False)
            events, (oldest, newest) = tx.foreign_events(after=self._position, limit=_CHUNK)
            return events, oldest, newest

        events, oldest, newest = await self._database.read(work)
        missed = self._position < oldest
        more = len(events) == _CHUNK
        self._position = events[-1].position if more else newest
        if missed:
            heard(None)
        elif events:
            heard(events)
        return more
