"""From an address to a database whose tables are up to date."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from grpc_runtime.sql.address import parse_address
from grpc_runtime.sql.postgresql import PostgresDatabase
from grpc_runtime.sql.sqlite import SqliteDatabase

if TYPE_CHECKING:
    from grpc_runtime.sql.database import Database


async def open_database(
    address: str | Path, *, migrations: ModuleType, exclusive_owner: str
) -> Database:
    """Opens a database and brings its tables up to date.

    An SQLite file is made if there is none, and kept from other processes until it is
    closed. A PostgreSQL database has to be there, and may be shared by replicas.

    Args:
        address: A path, sqlite:///state.db (relative), sqlite:////var/lib/state.db, or
            postgresql://user:password@host:port/name.
        migrations: A package with Alembic's revisions in its folder `versions`. Their
            ids must differ from those of the other services of the project, so that none
            takes a database of another for its own.
        exclusive_owner: What the service is called where the database is shown to
            somebody else, such as in "another control plane uses it".

    Returns:
        The database; to be closed.

    Raises:
        DatabaseOpenError: If it can not be opened. The message shows no password.
    """
    where = parse_address(address)
    if isinstance(where, Path):
        return await asyncio.to_thread(SqliteDatabase, where, migrations, exclusive_owner)
    return await asyncio.to_thread(PostgresDatabase, where, migrations, exclusive_owner)
