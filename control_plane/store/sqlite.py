"""The store in one SQLite file, for one control plane at a time."""

from __future__ import annotations

import asyncio
import fcntl
import os
import queue
import sqlite3
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from sqlalchemy import URL, Connection, Engine, NullPool, create_engine, event
from sqlalchemy.exc import DBAPIError

from control_plane.store import migrations
from control_plane.store.errors import StoreError, advice, driver_error, translated
from control_plane.store.group_commit import GroupCommit, closed
from control_plane.store.transaction import SqlTransaction

if TYPE_CHECKING:
    from control_plane.services.ports import Transaction

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


class SqliteStore:
    """Implements `control_plane.services.ports.Store`.

    Writes run on one thread, which commits for many at once; reads on a few more,
    each on a snapshot of its own, so that neither waits for the other. To be used
    from one event loop.
    """

    def __init__(self, path: Path) -> None:
        """Opens the file, makes it if there is none, and brings its tables up to date.

        Args:
            path: Where the file is. A missing folder is made, for this user alone.

        Raises:
            StoreError: If that does not succeed.
        """
        self._path = path.expanduser().resolve()
        self._idle: queue.SimpleQueue[Connection] = queue.SimpleQueue()
        self._closing: asyncio.Task[None] | None = None
        with ExitStack() as opened:
            try:
                self._writer = self._open(opened)
            except OSError as error:
                raise StoreError(
                    f"can not open the database {path}: {error.strerror}; check the path and its "
                    "permissions, or choose another path"
                ) from error
            except (DBAPIError, sqlite3.Error) as error:
                text, _ = advice(error) or ("unexpected error", None)
                raise StoreError(
                    f"can not open the database {path}: {text} ({driver_error(error)})"
                ) from error
            self._opened = opened.pop_all()

    async def write(self, work: Callable[[Transaction], T]) -> T:
        """Runs `work` in a transaction; returns its result after the commit.

        Raises:
            Refusal: STORE_UNAVAILABLE if the database can not be written to,
                SHUTTING_DOWN after `close`.
            BaseException: Whatever `work` raises; its writes are undone.
        """
        return await self._writer.write(work)

    async def read(self, work: Callable[[Transaction], T]) -> T:
        """Runs `work` on a consistent view of what is committed. It must not write.

        Raises:
            Refusal: STORE_UNAVAILABLE if the database can not be read, SHUTTING_DOWN
                after `close`.
            BaseException: Whatever `work` raises.
        """
        if self._closing is not None:
            raise closed()
        return await asyncio.get_running_loop().run_in_executor(self._readers, self._read, work)

    async def close(self) -> None:
        """Finishes what was begun and closes the files. May be called more than once."""
        if self._closing is None:
            self._closing = asyncio.create_task(asyncio.to_thread(self._finish))
        await asyncio.shield(self._closing)

    def _open(self, opened: ExitStack) -> GroupCommit:
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        opened.callback(os.close, _lock(self._path))
        # Made here, so that only its owner may read it; SQLite's other files follow it in that.
        os.close(os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        writer = opened.enter_context(_engine(self._path, _WRITER, "BEGIN IMMEDIATE").connect())
        with writer.begin():
            mode = writer.exec_driver_sql("PRAGMA journal_mode").scalar_one()
            if mode != "wal":
                raise StoreError(
                    f"can not open the database {self._path}: its file system does not allow "
                    f"write-ahead logging (journal mode is {mode!r}); put it on a local disk"
                )
            migrations.upgrade(writer, str(self._path))
        reading = _engine(self._path, _READER, "BEGIN")
        for _ in range(READERS):
            self._idle.put(opened.enter_context(reading.connect()))
        self._readers = ThreadPoolExecutor(READERS, thread_name_prefix="store-reader")
        return GroupCommit(writer, in_transaction=lambda: _in_transaction(writer))

    def _read(self, work: Callable[[Transaction], T]) -> T:
        connection = self._idle.get()
        try:
            with connection.begin():
                return work(SqlTransaction(connection, writing=False))
        except (DBAPIError, sqlite3.Error) as error:
            raise translated(error) from driver_error(error)
        finally:
            self._idle.put(connection)

    def _finish(self) -> None:
        self._writer.close()
        self._readers.shutdown()
        self._opened.close()


def _lock(path: Path) -> int:
    """Keeps other control planes from the same file: their wake-ups would not reach this one.

    Returns:
        A file descriptor; the lock lasts until it is closed, so at most as long as the process.
    """
    lock = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.ftruncate(lock, 0)
        os.pwrite(lock, str(os.getpid()).encode(), 0)
    except BlockingIOError as error:
        owner = os.pread(lock, 20, 0).decode()
        os.close(lock)
        raise StoreError(
            f"can not open the database {path}: another control plane (process {owner}) uses it; "
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
        connection.exec_driver_sql(begin)

    return engine


def _in_transaction(connection: Connection) -> bool:
    driver = connection.connection.driver_connection
    assert isinstance(driver, sqlite3.Connection)
    return driver.in_transaction
