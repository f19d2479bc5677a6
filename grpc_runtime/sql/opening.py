"""From an address to a database whose tables are up to date."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path
from typing import TYPE_CHECKING

from grpc_runtime.logging import get_logger
from grpc_runtime.sql.address import parse_address, shown
from grpc_runtime.sql.errors import DatabaseAwayError
from grpc_runtime.sql.postgresql import PostgresDatabase
from grpc_runtime.sql.sqlite import SqliteDatabase

if TYPE_CHECKING:
    from types import ModuleType

    from grpc_runtime.sql.database import Database

_RETRY_SECONDS = 1.0

_log = get_logger(__name__)


async def open_database(
    address: str | Path, *, migrations: ModuleType, exclusive_owner: str, patience: float = 0.0
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
        patience: Seconds to wait for a PostgreSQL server that does not answer.

    Returns:
        The database; to be closed.

    Raises:
        DatabaseOpenError: If it can not be opened. The message shows no password.
        DatabaseAwayError: If that was so for as long as `patience`.
    """
    loop = asyncio.get_running_loop()
    end = loop.time() + patience
    is_waiting = False
    while True:
        try:
            opened = await _open(address, migrations, exclusive_owner)
        except DatabaseAwayError as error:
            left = end - loop.time()
            if left <= 0:
                waited = f", waited for {patience:g} s" if patience else ""
                raise DatabaseAwayError(f"{error}{waited}") from error
            if not is_waiting:
                is_waiting = True
                _log.warning("waits for the database", seconds=patience, error=str(error))
            await asyncio.sleep(min(left, random.uniform(0.5, 1) * _RETRY_SECONDS))  # noqa: S311 - spreads the load, no secret
        else:
            if is_waiting:
                _log.info("the database is there", database=shown(str(address)))
            return opened


async def _open(address: str | Path, migrations: ModuleType, exclusive_owner: str) -> Database:
    where = parse_address(address)
    if isinstance(where, Path):
        return await asyncio.to_thread(SqliteDatabase, where, migrations, exclusive_owner)
    return await asyncio.to_thread(PostgresDatabase, where, migrations, exclusive_owner)
