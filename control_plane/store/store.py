"""The store over any SQL database."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from control_plane.store.errors import refusing
from control_plane.store.transaction import SqlTransaction

if TYPE_CHECKING:
    from control_plane.services.ports import Transaction
    from grpc_runtime.sql import Database

T = TypeVar("T")


class SqlStore:
    """Implements `control_plane.services.ports.Store`. To be used from one event loop."""

    def __init__(self, database: Database) -> None:
        """Takes over a database that has the store's tables."""
        self._database = database

    async def write(self, work: Callable[[Transaction], T]) -> T:
        """Runs `work` in a transaction; returns its result after the commit.

        Raises:
            Refusal: STORE_UNAVAILABLE if the database can not be written to,
                SHUTTING_DOWN after `close`.
            BaseException: Whatever `work` raises; its writes are undone.
        """
        with refusing():
            return await self._database.write(
                lambda connection: work(SqlTransaction(connection, writing=True))
            )

    async def read(self, work: Callable[[Transaction], T]) -> T:
        """Runs `work` on a consistent view of what is committed. It must not write.

        Raises:
            Refusal: STORE_UNAVAILABLE if the database can not be read, SHUTTING_DOWN
                after `close`.
            BaseException: Whatever `work` raises.
        """
        with refusing():
            return await self._database.read(
                lambda connection: work(SqlTransaction(connection, writing=False))
            )

    async def close(self) -> None:
        """Finishes what was begun and closes the database. May be called more than once."""
        await self._database.close()
