"""Durable state: one contract (`control_plane.services.ports.Store`), kept over SQL."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING

from control_plane.store.errors import StoreError
from control_plane.store.sqlite import SqliteStore

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
    return await asyncio.to_thread(SqliteStore, _path(database))


def _path(database: str | Path) -> Path:
    if isinstance(database, Path):
        return database
    scheme, separator, rest = database.partition("://")
    if separator and scheme != "sqlite":
        # Only the scheme is shown: the rest may hold a password.
        raise StoreError(
            f"this version stores in SQLite only; got a {scheme}:// address, "
            "allowed: a path, or sqlite:///path"
        )
    path = rest.removeprefix("/") if separator else database
    if not path or path.startswith((":memory:", "file:")) or (separator and rest[:1] != "/"):
        raise StoreError(
            f"got {database!r} as the database, allowed: the path of a file, or sqlite:///path; "
            "a database in memory would not be durable, so there is none"
        )
    return Path(path)
