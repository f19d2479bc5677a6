"""A database in one SQLite file, for one process at a time."""

from __future__ import annotations

import asyncio
import fcntl
import os
import queue
import sqlite3
from contextlib import ExitStack
from typing import TYPE_CHECKING, Literal, TypeVar

from sqlalchemy import URL, Connection, Engine, NullPool, create_engine, event
from sqlalchemy.exc import DBAPIError

from grpc_runtime.sql.errors import DatabaseClosedError, DatabaseOpenError
from grpc_runtime.sql.faults import advice, driver_error, translated
from grpc_runtime.sql.group_commit import GroupCommit
from grpc_runtime.sql.migrations import upgrade
from grpc_runtime.sql.prepared import execute
from grpc_runtime.sql.threads import Threads

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from types import ModuleType

T = TypeVar("T")

READERS = 3
"""Threads that read."""
BUSY_MILLISECONDS = 5_000
"""How long to wait for a process that keeps the file locked, such as a backup."""

_COMMON = (
    f"PRAGMA busy_timeout = {BUSY_MILLISECONDS}",
    "PRAGMA foreign_keys = ON",
    "PRAGMA trusted_schema = OFF",
    "PRAGMA temp_store = MEMORY",
)
_WRITER = (
    *_COMMON,
    "PRAGMA journal_mode = WAL",
    # Durable: each commit waits for the disk, on macOS for the disk's own cache too.
    "PRAGMA synchronous = FULL",
    "PRAGMA fullfsync = ON",
    # 32 MiB of pages; 64 MiB of log are kept for reuse when it was longer.
    "PRAGMA cache_size = -32768",
    "PRAGMA journal_size_limit = 67108864",
)
_READER = (*_COMMON, "PRAGMA query_only = ON", "PRAGMA cache_size = -8192")


class SqliteDatabase:
    """Implements `grpc_runtime.sql.Database`.

    Writes run on one thread, which commits for many at once; reads on a few more,
    each on a snapshot of its own, so that neither waits for the other. To be used
    from one event loop.
    """

    def __init__(self, path: Path, migrations: ModuleType, owner: str) -> None:
        """Opens the file, makes it if there is none, and brings its tables up to date. Blocks.

        Args:
            path: Where the file is. A missing folder is made, for this user alone.
            migrations: A package with Alembic's revisions.
            owner: What the service is called, for whoever finds the file taken.

        Raises:
            DatabaseOpenError: If that does not succeed.
        """
        self._path = path.expanduser().resolve()
        self._idle: queue.SimpleQueue[Connection] = queue.SimpleQueue()
        self._closing: asyncio.Task[None] | None = None
        with ExitStack() as opened:
            try:
                self._writer = self._open(opened, migrations, owner)
            except OSError as error:
                raise DatabaseOpenError(
                    f"can not open the database {path}: {error.strerror}; check the path and its "
                    "permissions, or choose another path"
                ) from error
            except (DBAPIError, sqlite3.Error) as error:
                text, _ = advice(error) or ("unexpected error", None)
                raise DatabaseOpenError(
                    f"can not open the database {path}: {text} ({driver_error(error)})"
                ) from error
            self._opened = opened.pop_all()

    @property
    def dialect(self) -> Literal["sqlite"]:
        """Which kind of database this is."""
        return "sqlite"

    async def write(
        self, work: Callable[[Connection], T], *, orphaned: Callable[[], None] | None = None
    ) -> T:
        """Runs `work` in a transaction; returns its result after the commit.

        Args:
            work: What to do.
            orphaned: Called after the commit if the caller was cancelled meanwhile.

        Raises:
            DatabaseUnavailableError: If the database can not be written to.
            DatabaseClosedError: After `close`.
            BaseException: Whatever `work` raises; its writes are undone.
        """
        return await self._writer.write(work, orphaned=orphaned)

    async def listen(self, channel: str, heard: Callable[[], None]) -> None:
        """Nobody else writes.

        Raises:
            NotImplementedError: Always.
        """
        raise NotImplementedError("an SQLite file belongs to one process: there is none to hear")

    async def read(self, work: Callable[[Connection], T]) -> T:
        """Runs `work` on a consistent view of what is committed. It must not write.

        Raises:
            DatabaseUnavailableError: If the database can not be read.
            DatabaseClosedError: After `close`.
            BaseException: Whatever `work` raises.
        """
        if self._closing is not None:
            raise DatabaseClosedError
        return await self._readers.run(lambda: self._read(work))

    async def close(self) -> None:
        """Finishes what was begun and closes the files. May be called more than once."""
        if self._closing is None:
            self._writer.stop()
            self._closing = asyncio.create_task(asyncio.to_thread(self._finish))
        await asyncio.shield(self._closing)

    def _open(self, opened: ExitStack, migrations: ModuleType, owner: str) -> GroupCommit:
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        opened.callback(os.close, _lock(self._path, owner))
        # Made here, so that only its owner may read it; SQLite's other files follow it in that.
        os.close(os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        writer = opened.enter_context(_engine(self._path, _WRITER, "BEGIN IMMEDIATE").connect())
        with writer.begin():
            mode = writer.exec_driver_sql("PRAGMA journal_mode").scalar_one()
            if mode != "wal":
                raise DatabaseOpenError(
                    f"can not open the database {self._path}: its file system does not allow "
                    f"write-ahead logging (journal mode is {mode!r}); put it on a local disk"
                )
            upgrade(writer, migrations, str(self._path))
        reading = _engine(self._path, _READER, "BEGIN")
        for _ in range(READERS):
            self._idle.put(opened.enter_context(reading.connect()))
        self._readers = Threads(READERS, "sql-reader")
        return GroupCommit(
            writer,
            in_transaction=lambda: _driver(writer).in_transaction,
            changes=lambda: _driver(writer).total_changes,
        )

    def _read(self, work: Callable[[Connection], T]) -> T:
        connection = self._idle.get()
        try:
            with connection.begin():
                return work(connection)
        except (DBAPIError, sqlite3.Error) as error:
            raise translated(error) from driver_error(error)
        finally:
            self._idle.put(connection)

    def _finish(self) -> None:
        self._writer.join()
        self._readers.join()
        self._opened.close()


def _lock(path: Path, owner: str) -> int:
    """Keeps other processes from the same file: they would not learn of what this one does.

    Returns:
        A file descriptor; the lock lasts until it is closed, so at most as long as the process.
    """
    lock = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.ftruncate(lock, 0)
        os.pwrite(lock, str(os.getpid()).encode(), 0)
    except BlockingIOError as error:
        process = os.pread(lock, 20, 0).decode()
        os.close(lock)
        raise DatabaseOpenError(
            f"can not open the database {path}: another {owner} (process {process}) uses it; "
            "stop that one, or choose another path"
        ) from error
    except OSError:
        os.close(lock)
        raise
    return lock


def _engine(path: Path, pragmas: tuple[str, ...], begin: str) -> Engine:
    """An engine whose connections are set up, and begin transactions in the given way."""
    engine = create_engine(
        URL.create("sqlite", database=str(path)),
        # The driver's own handling of transactions would begin them too late and without a lock.
        connect_args={"isolation_level": None, "check_same_thread": False},
        poolclass=NullPool,
        # Values are the users' own: they belong into no log.
        hide_parameters=True,
    )

    @event.listens_for(engine, "connect")
    def set_up(connection: sqlite3.Connection, _record: object) -> None:
        for pragma in pragmas:
            connection.execute(pragma)

    @event.listens_for(engine, "begin")
    def begin_transaction(connection: Connection) -> None:
        execute(connection, begin)

    return engine


def _driver(connection: Connection) -> sqlite3.Connection:
    driver = connection.connection.driver_connection
    assert isinstance(driver, sqlite3.Connection)
    return driver
