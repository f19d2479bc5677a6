"""What can go wrong with a database, in words that say what to do."""

from __future__ import annotations

import sqlite3

from sqlalchemy.exc import DBAPIError

from control_plane.domain.errors import Reason, Refusal


class StoreError(Exception):
    """The database can not be opened. The message says why and what to do."""


_FULL = "the disk that holds the database is full; free some space"
_READ_ONLY = "the database can not be written to; check the permissions of its file and folder"
_LOCKED = "another process keeps the database locked; end it"
_CORRUPT = "the database file is damaged; stop the server and restore the file from a backup"
_OTHER_FILE = "the file is no SQLite database; choose another one, or restore it from a backup"
_BROKEN = "the disk that holds the database reports errors; check the disk"
_MEMORY = "the server is out of memory"

_ADVICE: dict[int, tuple[str, float | None]] = {
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
"""By primary result code: what to do, and after how many seconds a retry makes sense."""


def advice(error: BaseException) -> tuple[str, float | None] | None:
    """What to do about a fault of the database's surroundings, and when to try again.

    Returns:
        The advice, and seconds or None; None where the error is none of those.
    """
    code = getattr(driver_error(error), "sqlite_errorcode", None)
    # The lowest byte is the primary code, the rest says more exactly where it happened.
    return None if code is None else _ADVICE.get(code & 0xFF)


def driver_error(error: BaseException) -> BaseException:
    """The database driver's own error below an error, or the error itself."""
    return error.orig if isinstance(error, DBAPIError) and error.orig is not None else error


def translated(error: BaseException) -> BaseException:
    """The error to show for one that a transaction raised."""
    known = advice(error)
    if known is None:
        return error
    text, retry_delay = known
    refusal = Refusal(
        Reason.STORE_UNAVAILABLE, f"{text} ({driver_error(error)})", retry_delay=retry_delay
    )
    refusal.__cause__ = driver_error(error)
    return refusal
