"""Servers as processes on one database, and what can be done to them."""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import signal
import socket
import sqlite3
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, LiteralString

import psycopg
from psycopg import sql

from grpc_runtime import failpoints
from tests.faults.proxy import Proxy
from tests.faults.serving import DiskSpace, ServerProcess, WallClock
from tests.support.postgres import PostgresServer
from tests.support.processes import free_port, until
from tests.support.use_cases import eventually

_SETTINGS = {"heartbeat_interval": 1.0, "grace": 2.0, "log_level": "warning", "log_format": "json"}
_LOOK = 0.2


# Events are the last thing of a write: what was done before has to be undone.
_FILL: Sequence[LiteralString] = (
    """CREATE FUNCTION find_disk_full() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
        RAISE EXCEPTION 'No space left on device' USING ERRCODE = 'disk_full';
    END $$""",
    """CREATE TRIGGER full_disk BEFORE INSERT ON events
        FOR EACH STATEMENT EXECUTE FUNCTION find_disk_full()""",
)
_CLEAR: Sequence[LiteralString] = ("DROP FUNCTION find_disk_full CASCADE",)


class Replica:
    """One server, on a port that it keeps; done to by one fault at a time.

    Attributes:
        proxy: What everybody connects to who connects to it.
        fault: Held by what is done to it.
        starts: How often it was started.
        clock: What its clock says.
        disk: Whether there is room on its disk.
    """

    def __init__(self, database: str, directory: Path, env: Mapping[str, str]) -> None:
        self._env = env
        self.port = free_port()
        self.proxy = Proxy(self.port)
        self.fault = asyncio.Lock()
        self.starts = 0
        self._database = database
        self._directory = directory / str(self.port)
        self._directory.mkdir()
        self.clock = WallClock(self._directory / "clock")
        self.disk = DiskSpace(self._directory / "disk")
        self._process: ServerProcess | None = None

    @property
    def address(self) -> str:
        """Where to connect to."""
        return self.proxy.address

    @property
    def has_ended(self) -> bool:
        """Whether its process is gone."""
        return self._process is None or self._process.exit_code is not None

    def start(self, env: Mapping[str, str] | None = None) -> None:
        """Starts it, unless it runs; with more in its environment."""
        if self.has_ended:
            self.starts += 1
            self._process = ServerProcess(
                {**_SETTINGS, "listen": f"127.0.0.1:{self.port}", "database": self._database},
                self._directory / "log",
                self.clock,
                self.disk,
                {**self._env, **(env or {})},
            )

    async def crash(self, spec: str, seconds: float) -> bool:
        """Starts it again with failpoints; returns whether it has crashed within the time."""
        self.kill()
        for name in failpoints.POINTS:
            (self._directory / name).unlink(missing_ok=True)
        self.start({failpoints.VARIABLE: spec, failpoints.NOTES: str(self._directory)})
        with contextlib.suppress(AssertionError):
            await eventually(lambda: self.has_ended, "it has crashed", seconds)
            return True
        return False

    @contextlib.contextmanager
    def no_room(self) -> Iterator[None]:
        """It can make no file longer while the block runs: its disk has an error."""
        if self._process is None or self.has_ended:
            yield
            return
        pid = self._process.pid
        before = resource.prlimit(pid, resource.RLIMIT_FSIZE, (1, resource.RLIM_INFINITY))
        try:
            yield
        finally:
            with contextlib.suppress(ProcessLookupError):
                resource.prlimit(pid, resource.RLIMIT_FSIZE, before)

    @contextlib.contextmanager
    def full_disk(self) -> Iterator[None]:
        """The database finds its disk full while the block runs."""
        self.disk.set(full=True)
        try:
            yield
        finally:
            self.disk.set(full=False)

    async def restart(self, seconds: float) -> None:
        """Starts it, and waits until it listens; if it takes longer, that is for others to see."""
        with contextlib.suppress(AssertionError):
            await eventually(self._started, "the server listens", seconds)

    def _started(self) -> bool:
        self.start()  # again, if it could not open the database
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0

    def signal(self, number: int) -> None:
        """Sends its process a signal."""
        if self._process is not None and not self.has_ended:
            os.kill(self._process.pid, number)

    async def end(self, number: int, seconds: float = 20.0) -> None:
        """Ends its process by a signal; by SIGKILL, if that is not enough."""
        self.signal(number)
        with contextlib.suppress(AssertionError):
            await eventually(lambda: self.has_ended, "the server has ended", seconds)
        self.kill()

    def kill(self) -> None:
        """Ends its process and what it has started, at once."""
        if self._process is not None:
            self._process.end()

    def log(self) -> str:
        """The end of what it has logged."""
        return self._process.tail() if self._process is not None else ""


class Cluster:
    """Servers on one database.

    Attributes:
        replicas: The servers.
        postgres: The database's server; None: it is a file.
        database: Address of the database.
    """

    def __init__(
        self,
        database: str,
        directory: Path,
        count: int,
        postgres: PostgresServer | None,
        env: Mapping[str, str] | None = None,
    ) -> None:
        self.database = database
        self.postgres = postgres
        self.postgres_fault = asyncio.Lock()
        self.replicas = [Replica(database, directory, env or {}) for _ in range(count)]

    @property
    def addresses(self) -> list[str]:
        """Where the servers listen."""
        return [replica.address for replica in self.replicas]

    def whole_replica(self, choice: int) -> Replica:
        """One that nothing is being done to; if there is none, any."""
        whole = [replica for replica in self.replicas if not replica.fault.locked()]
        among = whole or self.replicas
        return among[choice % len(among)]

    async def supervise(self) -> None:
        """Starts again what has ended by itself, as it could not open the database; for ever."""
        while True:
            for replica in self.replicas:
                if replica.has_ended and not replica.fault.locked():
                    replica.start()
            await asyncio.sleep(_LOOK)

    async def restart_postgres(self, number: int, away: float) -> None:
        """Stops the database and starts it again: SIGINT is in good order, SIGQUIT a crash."""
        assert self.postgres is not None
        async with self.postgres_fault:
            await asyncio.to_thread(self.postgres.stop, number)
            try:
                await asyncio.sleep(away)
            finally:
                await asyncio.to_thread(self.postgres.start)

    async def kill_backend(self, choice: int) -> bool:
        """Kills a process of the database that serves somebody, whereupon it restarts itself.

        Returns:
            Whether there was one.
        """
        assert self.postgres is not None
        async with self.postgres_fault:
            pid = await asyncio.to_thread(_backend, self.postgres, self.database, choice)
            with contextlib.suppress(ProcessLookupError):
                if pid is not None:
                    os.kill(pid, signal.SIGKILL)
                    return True
        return False

    async def stop_backend(self, choice: int, lasting: float) -> bool:
        """Has a process of the database stand still that serves somebody.

        Returns:
            Whether there was one.
        """
        assert self.postgres is not None
        async with self.postgres_fault:
            pid = await asyncio.to_thread(_backend, self.postgres, self.database, choice)
            with contextlib.suppress(ProcessLookupError):
                if pid is not None:
                    os.kill(pid, signal.SIGSTOP)
                    await asyncio.sleep(lasting)
                    os.kill(pid, signal.SIGCONT)
                    return True
        return False

    @contextlib.asynccontextmanager
    async def locked_database(self) -> AsyncIterator[None]:
        """Somebody else keeps a database in a file locked while the block runs."""

        def lock() -> sqlite3.Connection:
            connection = sqlite3.connect(self.database, check_same_thread=False, timeout=30.0)
            connection.isolation_level = None
            connection.execute("BEGIN IMMEDIATE")
            return connection

        connection = await asyncio.to_thread(lock)
        try:
            yield
        finally:
            connection.close()

    @contextlib.asynccontextmanager
    async def read_only_database(self) -> AsyncIterator[None]:
        """PostgreSQL takes nothing that writes while the block runs, as one that stands by."""
        async with self.postgres_fault:
            await asyncio.to_thread(self._set_read_only, "on")
            try:
                yield
            finally:
                await asyncio.to_thread(self._set_read_only, "off")

    @contextlib.asynccontextmanager
    async def full_database(self) -> AsyncIterator[None]:
        """PostgreSQL says that its disk is full, in the middle of a write, while the block runs."""
        async with self.postgres_fault:
            await asyncio.to_thread(self._execute, *_FILL)
            try:
                yield
            finally:
                await asyncio.to_thread(self._execute, *_CLEAR)

    def _execute(self, *statements: LiteralString) -> None:
        assert self.postgres is not None
        with _session(self.postgres, self.database.rpartition("/")[2]) as session:
            for statement in statements:
                session.execute(statement)

    def _set_read_only(self, value: str) -> None:
        assert self.postgres is not None
        with _session(self.postgres) as session:
            name = self.database.rpartition("/")[2]
            session.execute(
                sql.SQL("ALTER DATABASE {} SET default_transaction_read_only = {}").format(
                    sql.Identifier(name), sql.SQL(value)
                )
            )
            # It is so for those who connect from now on.
            session.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", [name]
            )

    def kill(self) -> None:
        """Ends all servers at once."""
        for replica in self.replicas:
            replica.kill()

    def logs(self) -> Iterator[str]:
        """What the servers have logged last."""
        for replica in self.replicas:
            yield f"{replica.address}:\n{replica.log()}"


@contextlib.contextmanager
def _session(postgres: PostgresServer, name: str = "postgres") -> Iterator[psycopg.Connection[Any]]:
    """A session with the database's server, once that has recovered from what came before."""
    with contextlib.ExitStack() as stack:

        def begun() -> psycopg.Connection[Any] | None:
            try:
                return stack.enter_context(postgres.session(name))
            except psycopg.OperationalError:
                return None

        yield until(begun, "the database has recovered")


def _backend(postgres: PostgresServer, database: str, choice: int) -> int | None:
    with _session(postgres) as session:
        found = session.execute(
            "SELECT pid FROM pg_stat_activity WHERE datname = %s ORDER BY pid",
            [database.rpartition("/")[2]],
        ).fetchall()
    return found[choice % len(found)][0] if found else None


@contextlib.asynccontextmanager
async def running_cluster(
    database: str,
    directory: Path,
    count: int,
    postgres: PostgresServer | None = None,
    *,
    env: Mapping[str, str] | None = None,
) -> AsyncIterator[Cluster]:
    """Servers that run while the block does; started again where they end by themselves."""
    cluster = Cluster(database, directory, count, postgres, env)
    async with contextlib.AsyncExitStack() as stack:
        for replica in cluster.replicas:
            await stack.enter_async_context(replica.proxy.running())
        supervising = asyncio.create_task(cluster.supervise())
        try:
            yield cluster
        finally:
            supervising.cancel()
            try:
                with contextlib.suppress(asyncio.CancelledError):
                    await supervising
            finally:
                cluster.kill()
