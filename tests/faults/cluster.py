"""Servers as processes on one database, and what can be done to them."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

from tests.support.postgres import PostgresServer
from tests.support.processes import Process, free_port, serve
from tests.support.use_cases import eventually

_SETTINGS = {"heartbeat_interval": 1.0, "grace": 2.0, "log_level": "warning"}
_LOOK = 0.2


class Replica:
    """One server, on a port that it keeps; done to by one fault at a time.

    Attributes:
        fault: Held by what is done to it.
        starts: How often it was started.
    """

    def __init__(self, database: str, directory: Path) -> None:
        self.port = free_port()
        self.fault = asyncio.Lock()
        self.starts = 0
        self._database = database
        self._directory = directory / str(self.port)
        self._directory.mkdir()
        self._process: Process | None = None

    @property
    def address(self) -> str:
        """Where it listens."""
        return f"127.0.0.1:{self.port}"

    @property
    def has_ended(self) -> bool:
        """Whether its process is gone."""
        return self._process is None or self._process.exit_code is not None

    def start(self) -> None:
        """Starts it, unless it runs."""
        if self.has_ended:
            self.starts += 1
            self._process = serve(self.port, self._directory, database=self._database, **_SETTINGS)

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
        self, database: str, directory: Path, count: int, postgres: PostgresServer | None
    ) -> None:
        self.database = database
        self.postgres = postgres
        self.postgres_fault = asyncio.Lock()
        self.replicas = [Replica(database, directory) for _ in range(count)]

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

    async def kill_backend(self, choice: int) -> None:
        """Kills a process of the database that serves somebody, whereupon it restarts itself."""
        assert self.postgres is not None
        async with self.postgres_fault:
            await asyncio.to_thread(_kill_backend, self.postgres, self.database, choice)

    def kill(self) -> None:
        """Ends all servers at once."""
        for replica in self.replicas:
            replica.kill()

    def logs(self) -> Iterator[str]:
        """What the servers have logged last."""
        for replica in self.replicas:
            yield f"{replica.address}:\n{replica.log()}"


def _kill_backend(postgres: PostgresServer, database: str, choice: int) -> None:
    with postgres.session() as session:
        found = session.execute(
            "SELECT pid FROM pg_stat_activity WHERE datname = %s ORDER BY pid",
            [database.rpartition("/")[2]],
        ).fetchall()
    if found:
        with contextlib.suppress(ProcessLookupError):
            os.kill(found[choice % len(found)][0], signal.SIGKILL)


@contextlib.asynccontextmanager
async def running_cluster(
    database: str, directory: Path, count: int, postgres: PostgresServer | None = None
) -> AsyncIterator[Cluster]:
    """Servers that run while the block does; started again where they end by themselves."""
    cluster = Cluster(database, directory, count, postgres)
    supervising = asyncio.create_task(cluster.supervise())
    try:
        yield cluster
    finally:
        supervising.cancel()
        await asyncio.wait([supervising])
        cluster.kill()
