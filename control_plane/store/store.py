"""The store over any SQL database."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeVar

from control_plane.store.errors import refusing
from control_plane.store.following import Follower
from control_plane.store.transaction import SqlTransaction
from grpc_runtime.sql import DatabaseUnavailableError

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from control_plane.services.ports import Transaction
    from control_plane.services.records import Event
    from grpc_runtime.sql import Database

T = TypeVar("T")


class SqlStore:
    """Implements `control_plane.services.ports.Store`. To be used from one event loop."""

    def __init__(self, database: Database, *, position: int = 0, poll_interval: float) -> None:
        """Takes over a database that has the store's tables.

        Args:
            database: To be closed with the store.
            position: Of the newest event by now.
            poll_interval: Seconds after which to look for what other replicas have written,
                though nobody has said that there is anything.
        """
        self._database = database
        self._position = position
        self._poll_interval = poll_interval
        self._heard: Callable[[Sequence[Event] | None], None] | None = None
        self.replica = uuid.uuid4().hex[:16]
        self.is_shared = database.dialect == "postgresql"

    async def write(self, work: Callable[[Transaction], T]) -> T:
        """Runs `work` in a transaction; returns its result after the commit.

        Raises:
            Refusal: STORE_UNAVAILABLE if the database can not be written to,
                SHUTTING_DOWN after `close`.
            BaseException: Whatever `work` raises; its writes are undone.
        """
        appended: list[Event] = []

        def unit(connection: Connection) -> T:
            transaction = SqlTransaction(connection, origin=self.replica, writing=True)
            result = work(transaction)
            transaction.write_events()
            appended[:] = transaction.appended
            return result

        def tell() -> None:
            if appended and self._heard is not None:
                self._heard(appended)

        with refusing():
            try:
                return await self._database.write(unit, orphaned=tell)
            except DatabaseUnavailableError:
                # Perhaps it has taken effect all the same, and the caller will not tell.
                tell()
                raise

    async def read(self, work: Callable[[Transaction], T]) -> T:
        """Runs `work` on a consistent view of what is committed. It must not write.

        Raises:
            Refusal: STORE_UNAVAILABLE if the database can not be read, SHUTTING_DOWN
                after `close`.
            BaseException: Whatever `work` raises.
        """
        with refusing():
            return await self._database.read(
                lambda connection: work(
                    SqlTransaction(connection, origin=self.replica, writing=False)
                )
            )

    async def follow(self, heard: Callable[[Sequence[Event] | None], None]) -> None:
        """Tells of what is committed without a caller here who would: runs until cancelled.

        Args:
            heard: Is called with the events; None: some may have been missed.
        """
        self._heard = heard
        if not self.is_shared:
            await asyncio.Event().wait()
        follower = Follower(self._database, self.replica, self._position, self._poll_interval)
        await follower.run(heard)

    async def close(self) -> None:
        """Finishes what was begun and closes the database. May be called more than once."""
        await self._database.close()
