"""A database on a PostgreSQL server, which replicas may share."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from sqlalchemy import create_engine, event
from sqlalchemy.exc import DBAPIError

from grpc_runtime.failpoints import reached
from grpc_runtime.sql.address import shown
from grpc_runtime.sql.errors import (
    DatabaseAwayError,
    DatabaseClosedError,
    DatabaseOpenError,
    DatabaseUnavailableError,
    TransactionLostError,
)
from grpc_runtime.sql.faults import (
    COLLISIONS,
    OVERTAKEN,
    advice,
    driver_error,
    one_line,
    sqlstate,
    translated,
)
from grpc_runtime.sql.listening import listen
from grpc_runtime.sql.migrations import upgrade
from grpc_runtime.sql.pipelining import READING, WRITING, pipelined, set_up
from grpc_runtime.sql.prepared import send
from grpc_runtime.sql.threads import Threads

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType

    from sqlalchemy import URL, Connection, Engine
    from sqlalchemy.pool import ConnectionPoolEntry

T = TypeVar("T")

THREADS = 8
"""Units of work at a time, each on a thread and a connection of its own."""
ATTEMPTS = 6
"""How often a unit of work is begun, at most, when it collides with others."""
LOCK_SECONDS = 5
"""How long to wait for a row or table that somebody keeps locked."""
MIGRATION_LOCK_SECONDS = 60
"""How long to wait for another replica that migrates the tables."""

_BACKOFF_SECONDS = 0.01
"""Waited on average before a second attempt; twice as long before each one after it."""
_MIGRATION_LOCK = 0x5C_4E_3A_6D_16_7A_70_01
"""Any number: advisory locks count within one database, which belongs to one service."""

_CONNECTING: dict[str, str | int] = {
    "connect_timeout": 10,
    "client_encoding": "utf8",
    # A server that vanished without a word is noticed within half a minute.
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 4,
    "tcp_user_timeout": 30_000,
}
"""Parameters of libpq, unless the address has its own."""


class _LostError(Exception):
    """The connection was lost before the commit, so the server has undone everything."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error


class PostgresDatabase:
    """Implements `grpc_runtime.sql.Database`.

    A write that collides with another one, or loses its connection before its commit, is
    run again, a few times; one that finds a key in use, or gone, once. To be used from one
    event loop.
    """

    def __init__(self, url: URL, migrations: ModuleType, owner: str) -> None:
        """Connects, and brings the tables up to date. Blocks.

        Args:
            url: Where the database is.
            migrations: A package with Alembic's revisions.
            owner: What the service is called, for whoever looks at the server's sessions.

        Raises:
            DatabaseOpenError: If that does not succeed.
        """
        self._name = shown(url)
        defaults = {**_CONNECTING, "application_name": owner}
        self._connecting = {k: v for k, v in defaults.items() if k not in url.query}
        self._sessions: set[int] = set()
        self._engine = _engine(url, self._connecting, self._sessions)
        self._connecting |= self._engine.dialect.create_connect_args(url)[1]
        self._reading = self._engine.execution_options(**READING)
        try:
            with self._engine.begin() as connection:
                # Replicas that start together do this one after the other.
                connection.exec_driver_sql(f"SET LOCAL lock_timeout = '{MIGRATION_LOCK_SECONDS}s'")
                connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_MIGRATION_LOCK})")
                upgrade(connection, migrations, self._name)
        except DBAPIError as error:
            self._engine.dispose()
            text, _ = advice(error) or (_CHECK_ADDRESS, None)
            kind = DatabaseAwayError if _may_pass(error) else DatabaseOpenError
            raise kind(
                f"can not open the database {self._name}: {text} ({one_line(error)})"
            ) from driver_error(error)
        except BaseException:
            self._engine.dispose()
            raise
        self._threads = Threads(THREADS, "sql")
        self._closing: asyncio.Task[None] | None = None

    @property
    def dialect(self) -> Literal["postgresql"]:
        """Which kind of database this is."""
        return "postgresql"

    async def write(
        self, work: Callable[[Connection], T], *, orphaned: Callable[[], None] | None = None
    ) -> T:
        """Runs `work` in a transaction; returns its result after the commit.

        Args:
            work: What to do.
            orphaned: Called after the commit if the caller was cancelled meanwhile.

        Raises:
            DatabaseUnavailableError: If the database can not be written to, or was lost
                during the commit.
            DatabaseClosedError: After `close`.
            BaseException: Whatever `work` raises; its writes are undone.
        """
        return await self._run(self._engine, work, orphaned)

    async def read(self, work: Callable[[Connection], T]) -> T:
        """Runs `work` on a consistent view of what is committed. It must not write.

        Raises:
            DatabaseUnavailableError: If the database can not be read.
            DatabaseClosedError: After `close`.
            BaseException: Whatever `work` raises.
        """
        return await self._run(self._reading, work)

    async def listen(self, channel: str, heard: Callable[[], None]) -> None:
        """Calls `heard` for every notification: runs until cancelled; see `Database`."""
        await listen(self._connecting, self._name, channel, heard, self._sessions)

    async def close(self) -> None:
        """Finishes what was begun and disconnects. May be called more than once."""
        if self._closing is None:
            self._closing = asyncio.create_task(asyncio.to_thread(self._finish))
        await asyncio.shield(self._closing)

    async def _run(
        self,
        engine: Engine,
        work: Callable[[Connection], T],
        orphaned: Callable[[], None] | None = None,
    ) -> T:
        if self._closing is not None:
            raise DatabaseClosedError
        return await self._threads.run(lambda: self._attempts(engine, work), orphaned=orphaned)

    def _attempts(self, engine: Engine, work: Callable[[Connection], T]) -> T:
        """Runs work until it is committed, or there is no sense in running it again."""
        collisions = losses = 0
        twice = False
        while True:
            try:
                return self._attempt(engine, work)
            except _LostError as lost:
                losses += 1
                # After the server was away, that is so for each connection in the pool once.
                if losses > THREADS:
                    raise self._unreachable(lost.error) from driver_error(lost.error)
            except DBAPIError as error:
                code = sqlstate(error)
                if code in OVERTAKEN and not twice:
                    # Somebody else may have written or deleted it meanwhile: work sees that now.
                    twice = True
                    continue
                if code not in COLLISIONS:
                    raise translated(error) from driver_error(error)
                collisions += 1
                if collisions == ATTEMPTS:
                    raise DatabaseUnavailableError(
                        f"{ATTEMPTS} attempts collided with other writers; try again later "
                        f"({one_line(error)})",
                        1.0,
                    ) from driver_error(error)
                # Each waits for another time, so that they do not collide again.
                time.sleep(_BACKOFF_SECONDS * 2**collisions * random.random())  # noqa: S311

    def _attempt(self, engine: Engine, work: Callable[[Connection], T]) -> T:
        """Runs work once.

        Raises:
            DatabaseUnavailableError: If the database can not be reached, or nobody knows
                whether the commit took effect.
            TransactionLostError: If work went on after an error had undone its transaction.
            _LostError: If the connection was lost before the commit.
            BaseException: Whatever else `work` raises, or the server for its commit.
        """
        try:
            connection = engine.connect()
        except (DBAPIError, engine.dialect.loaded_dbapi.Error) as error:
            # The driver's own where a new connection breaks while it is set up.
            raise self._unreachable(error) from driver_error(error)
        with connection:
            session: Any = connection.connection.driver_connection
            is_write = engine is self._engine
            may_be_committed = False
            try:
                with pipelined(connection):
                    connection.begin()
                    result = work(connection)
                    if session.closed:
                        raise TransactionLostError(_WENT_ON)
                    if is_write:
                        reached("commit.before")
                    may_be_committed = is_write
                    end: Any = send(connection, "COMMIT")
            except BaseException as error:
                if session.closed:
                    connection.invalidate()
                    if isinstance(error, (DBAPIError, TransactionLostError)):
                        if may_be_committed:
                            raise self._unknown_outcome(error) from driver_error(error)
                        raise _LostError(error) from error
                if may_be_committed and sqlstate(error) in _UNKNOWN_OUTCOME:
                    raise self._unknown_outcome(error) from driver_error(error)
                # Where that fails the connection is lost, which undoes as much.
                with contextlib.suppress(DBAPIError):
                    connection.rollback()
                raise
            if end.statusmessage != "COMMIT":
                # The server has undone it before, and says so without an error.
                raise TransactionLostError(_WENT_ON)
            if is_write:
                reached("commit.after")
            return result

    def _unknown_outcome(self, error: BaseException) -> DatabaseUnavailableError:
        return DatabaseUnavailableError(
            f"the connection to the database {self._name} was lost during the commit: whether it "
            f"took effect is unknown; look at what is there before you try again "
            f"({one_line(error)})",
            None,
        )

    def _unreachable(self, error: Exception) -> DatabaseUnavailableError:
        return DatabaseUnavailableError(
            f"no connection to the database {self._name}: {_CHECK_SERVER} ({one_line(error)})", 1.0
        )

    def _finish(self) -> None:
        self._threads.join()
        self._engine.dispose()


_CHECK_SERVER = "check that the server runs and that the network lets this machine reach it"
_CHECK_ADDRESS = (
    "check that the server runs, and the host, port, user, password and name in the address"
)

_TRANSIENT = ("starting up", "shutting down", "recovery", "too many", "reserved")
"""In what a server says that turns a connection down for now."""

_COMING = frozenset({"53300", "57P01", "57P02", "57P03"})
"""SQLSTATEs of the same."""

_UNKNOWN_OUTCOME = frozenset({"08007", "40003"})
"""SQLSTATEs by which a server between says that it does not know what became of a commit."""


def _engine(url: URL, connecting: dict[str, Any], sessions: set[int]) -> Engine:
    """The engine; `sessions` are kept to be the server's processes of its connections."""
    try:
        engine = create_engine(
            url,
            connect_args=dict(connecting),
            pool_size=THREADS,
            max_overflow=0,
            # Transactions are begun by what runs in a pipeline, not by the driver, which waits.
            isolation_level="AUTOCOMMIT",
            execution_options=WRITING,
            # Asks the server for a type that is not used here.
            use_native_hstore=False,
            # Values are the users' own: they belong into no log.
            hide_parameters=True,
        )
    except ImportError as error:
        raise DatabaseOpenError(
            "storing in PostgreSQL takes the package psycopg, which is not installed or does not "
            f"work ({error}); install it: pip install 'midcourse[postgres]'"
        ) from error

    @event.listens_for(engine, "connect")
    def connected(connection: Any, record: ConnectionPoolEntry) -> None:
        [(_, session)] = connection.execute(
            "SELECT set_config('lock_timeout', %s, false), pg_backend_pid()", [f"{LOCK_SECONDS}s"]
        )
        # Outside of the transaction that the first statement has begun.
        connection.commit()
        record.info["session"] = session
        sessions.add(session)

    @event.listens_for(engine, "close")
    def closed(_connection: object, record: ConnectionPoolEntry) -> None:
        sessions.discard(record.info.get("session", 0))

    set_up(engine)
    return engine


def _may_pass(error: DBAPIError) -> bool:
    """Whether a server that could not be connected to may be there later.

    The driver tells only in words whether a server has answered.
    """
    if sqlstate(error) is not None:
        return sqlstate(error) in _COMING
    said = one_line(error)
    return "FATAL" not in said or any(words in said for words in _TRANSIENT)


_WENT_ON = (
    "work went on after an error had undone its transaction; let the error through, or guard the "
    "statement with begin_nested()"
)
