"""Durable state: one contract (`control_plane.services.ports.Store`), kept over SQL."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from control_plane.store import migrations
from control_plane.store.errors import StoreError
from control_plane.store.store import SqlStore
from grpc_runtime.sql import DatabaseOpenError, open_database

if TYPE_CHECKING:
    from control_plane.services.ports import Store

__all__ = ["StoreError", "open_store"]


async def open_store(database: str | Path) -> Store:
    """Opens the store, makes it if there is none, and brings its tables up to date.

    Args:
        database: A path, or a URL such as sqlite:///state.db (relative) or
            sqlite:////var/lib/state.db.

    Returns:
        The store; to be closed.

    Raises:
        StoreError: If it can not be opened.
    """
    scheme, separator, _ = str(database).partition("://")
    if separator and scheme != "sqlite":
        # Only the scheme is shown: the rest may hold a password.
        raise StoreError(
            f"this version stores in SQLite only; got a {scheme}:// address, "
            "allowed: a path, or sqlite:///path"
        )
    try:
        opened = await open_database(
            database, migrations=migrations, exclusive_owner="control plane"
        )
    except DatabaseOpenError as error:
        raise StoreError(str(error)) from error
    return SqlStore(opened)
