"""What a driver's error says about the database's surroundings, and what to do about it."""

from __future__ import annotations

import sqlite3

from sqlalchemy.exc import DBAPIError

from grpc_runtime.sql.errors import DatabaseUnavailableError, UnstorableTextError

_FULL = "the disk that holds the database is full; free some space"
_READ_ONLY = "the database can not be written to; check the permissions of its file and folder"
_LOCKED = "another process keeps the database locked; end it"
_CORRUPT = "the database file is damaged; stop the server and restore the file from a backup"
_OTHER_FILE = "the file is no SQLite database; choose another one, or restore it from a backup"
_BROKEN = "the disk that holds the database reports errors; check the disk"
_MEMORY = "the server is out of memory"

_NUL = "text fields cannot contain NUL"

Advice = tuple[str, float | None]
"""What to do, and after how many seconds a retry makes sense."""

_SQLITE: dict[int, Advice] = {
    sqlite3.SQLITE_FULL: (_FULL, 10.0),
    sqlite3.SQLITE_READONLY: (_READ_ONLY, 10.0),
    sqlite3.SQLITE_PERM: (_READ_ONLY, 10.0),
    sqlite3.SQLITE_CANTOPEN: (_READ_ONLY, 10.0),
    sqlite3.SQLITE_BUSY: (_LOCKED, 1.0),
    sqlite3.SQLITE_LOCKED: (_LOCKED, 1.0),
    sqlite3.SQLITE_CORRUPT: (_CORRUPT, None),
    sqlite3.SQLITE_NOTADB: (_OTHER_FILE, None),
    sqlite3.SQLITE_IOERR: (_BROKEN, 10.0),
    sqlite3.SQLITE_NOMEM: (_MEMORY, 10.0),
}
"""By primary result code."""

_POSTGRES: dict[str, Advice] = {
    "25006": ("the database can not be written to: it is read-only, or a standby", 10.0),
    "42501": ("the database does not let this user do that; grant the user the right to", None),
    "53100": (_FULL, 10.0),
    "53200": ("the database server is out of memory", 10.0),
    "53300": ("the database server has no connection left; raise its max_connections", 1.0),
    "55P03": ("another session keeps rows or tables of the database locked; end it", 1.0),
    "57014": ("the database server cancelled a statement that took too long", 1.0),
    "57P01": ("the database server is shutting down; start it again", 1.0),
    "57P02": ("the database server has crashed and recovers", 1.0),
    "57P03": ("the database server is starting or shutting down", 1.0),
    "58030": (_BROKEN, 10.0),
    "XX001": ("a table of the database is damaged; restore it from a backup", None),
    "XX002": ("an index of the database is damaged; rebuild it with REINDEX", None),
}
"""By SQLSTATE."""

COLLISIONS = frozenset({"40001", "40P01"})
"""SQLSTATEs of a transaction that was undone for the sake of another, and may be repeated."""


OVERTAKEN = frozenset({"23503", "23505"})
"""SQLSTATEs of a row that refers to one that is gone, or whose key is there already."""


def driver_error(error: BaseException) -> BaseException:
    """The database driver's own error below an error, or the error itself."""
    return error.orig if isinstance(error, DBAPIError) and error.orig is not None else error


def sqlstate(error: BaseException) -> str | None:
    """PostgreSQL's code for an error; None if it has none."""
    return getattr(driver_error(error), "sqlstate", None)


def advice(error: BaseException) -> Advice | None:
    """What to do about a fault of the database's surroundings.

    Returns:
        None where the error is none of those.
    """
    code = getattr(driver_error(error), "sqlite_errorcode", None)
    if code is not None:
        # The lowest byte is the primary code, the rest says more exactly where it happened.
        return _SQLITE.get(code & 0xFF)
    return _POSTGRES.get(sqlstate(error) or "")


def one_line(error: BaseException) -> str:
    """What the driver says, on one line."""
    return " ".join(str(driver_error(error)).split())


def translated(error: BaseException) -> BaseException:
    """The error to show for one that a transaction raised."""
    known = advice(error)
    if known is None:
        # psycopg's own check, before anything is sent: there is no code to know it by.
        return UnstorableTextError() if _NUL in str(driver_error(error)) else error
    text, retry_delay = known
    unavailable = DatabaseUnavailableError(f"{text} ({one_line(error)})", retry_delay)
    unavailable.__cause__ = driver_error(error)
    return unavailable
