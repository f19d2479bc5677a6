"""What the soak runs against: real processes on one database each, and how to look into them."""

from __future__ import annotations

import contextlib
import os
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import psycopg
from psycopg import sql

from grpc_runtime.client.credentials import Credentials
from tests.support.fake_provider import FakeProcess, fake_provider_process
from tests.support.postgres import PostgresServer
from tests.support.processes import ROOT, Process, free_port, serve, until

RETAIN_DAYS = 60 / 86_400
"""A minute: what is forgotten after some time has to be forgotten often while the soak runs."""
_RETAINED = {
    f"retain_{what}_days": RETAIN_DAYS for what in ("samples", "events", "audit", "tokens")
}


@dataclass(frozen=True)
class Service:
    """A server as a process, and its database.

    Attributes:
        name: What it is called in the results.
        process: The process.
        address: Where it serves.
        metrics: Where its metrics are read.
        database: A file, or the address of a PostgreSQL database.
    """

    name: str
    process: Process
    address: str
    metrics: str
    database: str

    @property
    def is_postgres(self) -> bool:
        return self.database.startswith("postgresql://")

    def tables(self) -> dict[str, int]:
        """Rows of each table."""
        if self.is_postgres:
            with psycopg.connect(self.database, autocommit=True) as connection:
                names = connection.execute(
                    "SELECT tablename FROM pg_tables WHERE schemaname = 'public'"
                ).fetchall()
                return {
                    name: _number(
                        connection.execute(
                            sql.SQL("SELECT count(*) FROM {}").format(sql.Identifier(name))
                        ).fetchone()
                    )
                    for (name,) in names
                }
        with contextlib.closing(self._sqlite()) as connection:
            found = connection.execute(
                "SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite_%'"
            ).fetchall()
            return {
                name: _number(connection.execute(f'SELECT count(*) FROM "{name}"').fetchone())
                for (name,) in found
            }

    def bytes(self) -> dict[str, int]:
        """Bytes of the database, of what of it is in use, and of its log."""
        if self.is_postgres:
            with psycopg.connect(self.database, autocommit=True) as connection:
                return {
                    "database": _number(
                        connection.execute("SELECT pg_database_size(current_database())").fetchone()
                    ),
                }
        with contextlib.closing(self._sqlite()) as connection:
            page, count, free = (
                _number(connection.execute(f"PRAGMA {name}").fetchone())
                for name in ("page_size", "page_count", "freelist_count")
            )
        log = Path(f"{self.database}-wal")
        return {
            "database": page * count,
            "database in use": page * (count - free),
            "write-ahead log": log.stat().st_size if log.exists() else 0,
        }

    def _sqlite(self) -> sqlite3.Connection:
        return sqlite3.connect(f"file:{self.database}?mode=ro", uri=True, timeout=10)


def _number(row: tuple[int, ...] | None) -> int:
    assert row is not None
    return int(row[0])


@dataclass(frozen=True)
class Stand:
    """Both services, the provider that is asked, and who may do everything.

    Attributes:
        plane: The control plane.
        analytics: The analytics service.
        fake: What it asks instead of a provider of models.
        admin: Credentials of an administrator.
    """

    plane: Service
    analytics: Service
    fake: FakeProcess
    admin: Credentials

    @property
    def services(self) -> tuple[Service, Service]:
        return self.plane, self.analytics


@contextlib.contextmanager
def stand(directory: Path, *, postgres: bool) -> Iterator[Stand]:
    """Starts everything; ends it with SIGKILL."""
    with contextlib.ExitStack() as stack:
        databases = [str(directory / f"{name}.db") for name in ("control", "analytics")]
        if postgres:
            server = PostgresServer()
            stack.callback(server.end)
            databases = [stack.enter_context(server.empty_database()) for _ in databases]
        admin = Credentials(token=_first_token(databases[0]))
        plane = stack.enter_context(_control_plane(directory, databases[0]))
        fake = stack.enter_context(fake_provider_process("--deltas=20", "--interval-ms=5"))
        analytics = stack.enter_context(
            _analytics(directory, databases[1], plane.address, fake.openai_url)
        )
        yield Stand(plane, analytics, fake, admin)


def _first_token(database: str) -> str:
    made = subprocess.run(
        [
            *(sys.executable, "-m", "control_plane.cli", "token", "create", "soak"),
            *("--role=admin", f"--database={database}", "--lifetime=never"),
        ],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'protos'}"},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    (secret,) = (word for word in made.stdout.split() if word.startswith("mc_"))
    return secret


@contextlib.contextmanager
def _control_plane(directory: Path, database: str) -> Iterator[Service]:
    port, metrics = free_port(), free_port()
    process = serve(
        port,
        directory,
        database=database,
        auth="token",
        metrics_listen=f"127.0.0.1:{metrics}",
        heartbeat_interval=1.0,
        log_level="warning",
        **_RETAINED,
    )
    yield from _served("control plane", process, port, metrics, database)


@contextlib.contextmanager
def _analytics(
    directory: Path, database: str, control_plane: str, provider: str
) -> Iterator[Service]:
    port, metrics = free_port(), free_port()
    catalogue = directory / "models.toml"
    catalogue.write_text(
        f'[[providers]]\nid = "openai"\nprotocol = "openai-responses"\nbase_url = "{provider}"\n'
    )
    process = Process(
        "analytics",
        [
            *("-m", "control_plane.cli", "analytics", "serve", f"--listen=127.0.0.1:{port}"),
            *(f"--database={database}", f"--catalogue={catalogue}", "--auth=token"),
            *(f"--control-plane={control_plane}", f"--metrics-listen=127.0.0.1:{metrics}"),
            *(f"--retain-{what}-days={RETAIN_DAYS}" for what in ("sessions", "audit", "usage")),
            "--log-level=warning",
        ],
        directory,
        OPENAI_API_KEY="sk-soak",
    )
    yield from _served("analytics", process, port, metrics, database)


def _served(
    name: str, process: Process, port: int, metrics: int, database: str
) -> Iterator[Service]:
    def listens() -> bool:
        assert process.exit_code is None, process.tail()
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return True
        return False

    try:
        until(listens, f"{name} listens")
        yield Service(
            name,
            process,
            f"127.0.0.1:{port}",
            f"http://127.0.0.1:{metrics}/metrics",
            database,
        )
    finally:
        process.end()


def status_of(pid: int) -> Mapping[str, float]:
    """What Linux knows of a process: bytes of memory, threads, open files."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    fields = dict(line.split(":", 1) for line in lines if ":" in line)
    return {
        "memory": float(fields["VmRSS"].split()[0]) * 1024,
        "threads": float(fields["Threads"]),
        "files": float(len(list(Path(f"/proc/{pid}/fd").iterdir()))),
    }
