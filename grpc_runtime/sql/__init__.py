"""SQL databases behind one interface: SQLite in a file, or PostgreSQL.

================  ===============================================================================
``database``      :class:`Database`: reads on a snapshot, writes whole or not at all.
``opening``       :func:`open_database`: from an address to a database with its tables up to date.
``errors``        what can go wrong, in words that say what to do.
``columns``       column types that mean the same in both: times, names, exact decimals.
``prepared``      statements that are compiled once.
``listening``     hearing of what others commit to PostgreSQL.
``group_commit``  SQLite's one writer, which commits for many at once.
================  ===============================================================================
"""

from __future__ import annotations

from grpc_runtime.sql.address import shown
from grpc_runtime.sql.columns import KEY, DecimalText, Name, UtcTime
from grpc_runtime.sql.database import Database
from grpc_runtime.sql.errors import (
    DatabaseAwayError,
    DatabaseClosedError,
    DatabaseOpenError,
    DatabaseUnavailableError,
    UnstorableTextError,
)
from grpc_runtime.sql.opening import open_database

__all__ = [
    "KEY",
    "Database",
    "DatabaseAwayError",
    "DatabaseClosedError",
    "DatabaseOpenError",
    "DatabaseUnavailableError",
    "DecimalText",
    "Name",
    "UnstorableTextError",
    "UtcTime",
    "open_database",
    "shown",
]
