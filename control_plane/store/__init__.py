"""Durable state: one contract (`control_plane.services.ports.Store`), kept over SQL."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from control_plane.store import migrations
from control_plane.store.errors import StoreError
from control_plane.store.store import SqlStore
from control_plane.store.transaction import SqlTransaction
from grpc_runtime.sql import DatabaseOpenError, DatabaseUnavailableError, open_database

if TYPE_CHECKING:
    from control_plane.services.ports import Store

__all__ = ["StoreError", "open_store"]


POLL_INTERVAL = 5.0
"""Seconds; see `open_store`."""


async def open_store(
    database: str | Path, *, poll_interval: float = POLL_INTERVAL, patience: float = 0.0
) -> Store:
    """Opens the store, makes it if there is none, and brings its tables up to date.

    Args:
        database: A path, sqlite:///state.db (relative), sqlite:////var/lib/state.db, or
            postgresql://user:password@host:port/name. An SQLite file belongs to one process
            at a time; a PostgreSQL database may be shared by replicas.
        poll_interval: Seconds after which a replica looks for what others have written
            though it has heard of nothing.
        patience: Seconds to wait for a PostgreSQL server that does not answer.

    Returns:
        The store; to be closed.

    Raises:
        StoreError: If it can not be opened.
    """
    try:
        opened = await open_database(
            database,
            migrations=migrations,
            exclusive_owner="control plane",
            patience=patience,
        )
    except DatabaseOpenError as error:
        raise StoreError(str(error)) from error
    position = 0
    if opened.dialect == "postgresql":
        # From here on, everything that others write is heard of.
        try:
            position = await opened.read(
                lambda connection: SqlTransaction(connection, writing=False).event_span()[1]
            )
        except DatabaseUnavailableError as error:
            await opened.close()
            raise StoreError(str(error)) from error
    return SqlStore(opened, position=position, poll_interval=poll_interval)
