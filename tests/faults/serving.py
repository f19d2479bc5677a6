"""A server in a process of its own that need not import anything: forked from one that has."""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import signal
import struct
import sys
from collections.abc import Mapping
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, event

from control_plane.config import ServerSettings
from control_plane.server import ControlPlane, utc_now
from control_plane.services.ports import Clock, Store
from grpc_runtime import failpoints
from grpc_runtime.logging import configure_logging
from grpc_runtime.process import prepare_for_many
from grpc_runtime.server import Service, run
from tests.support.forked import Forked

PRELOADED = (__name__, "psycopg", "grpc_runtime.sql.postgresql", "control_plane.store.store")
"""What a server needs."""


@cache
def nursery() -> Forked:
    """Where processes of runs with faults are forked from."""
    return Forked(*PRELOADED, "tests.faults.engagement")


class WallClock:
    """The time in a server, which can be set from outside while it runs; kept in a file."""

    def __init__(self, path: Path) -> None:
        """Begins at the time that it is."""
        self._path = path
        path.write_bytes(_OFFSET.pack(0.0))

    def set(self, offset: float) -> None:
        """Sets it to so many seconds after the time that it is."""
        with self._path.open("r+b", buffering=0) as file:
            file.write(_OFFSET.pack(offset))

    def open(self) -> Clock:
        """What reads it."""
        with self._path.open("rb") as file:
            kept = mmap.mmap(file.fileno(), _OFFSET.size, access=mmap.ACCESS_READ)
        return lambda: utc_now() + timedelta(seconds=_OFFSET.unpack(kept[:])[0])


_OFFSET = struct.Struct("d")


class DiskSpace:
    """Whether there is any for the database's file, which can be said while the server runs."""

    def __init__(self, path: Path) -> None:
        """Begins with enough of it."""
        self._path = path
        path.write_bytes(b"\0")

    def set(self, *, full: bool) -> None:
        """Says that there is none left, or enough again."""
        with self._path.open("r+b", buffering=0) as file:
            file.write(bytes([full]))

    def limit(self) -> None:
        """Has SQLite find its disk full, in this process, as long as it is said to be."""
        with self._path.open("rb") as file:
            kept = mmap.mmap(file.fileno(), 1, access=mmap.ACCESS_READ)

        def begun(connection: Connection) -> None:
            full = kept[0] == 1
            if connection.dialect.name == "sqlite" and connection.info.get("full", False) != full:
                # Of what there is nothing is lost: fewer pages than it has a file can not be given.
                pages = 1 if full else _MOST_PAGES
                connection.exec_driver_sql(f"PRAGMA max_page_count = {pages}")
                connection.info["full"] = full

        event.listen(Engine, "begin", begun)


_MOST_PAGES = 4_294_967_294


class ServerProcess:
    """A running server, in a process group of its own, with its output in a file."""

    def __init__(
        self,
        settings: Mapping[str, object],
        log: Path,
        clock: WallClock,
        disk: DiskSpace,
        env: Mapping[str, str] | None = None,
    ) -> None:
        self._log = log
        self._process: Any = nursery().start(
            _serve, dict(settings), log, clock, disk, dict(env or {})
        )

    @property
    def pid(self) -> int:
        """Its process id."""
        pid: int = self._process.pid
        return pid

    @property
    def exit_code(self) -> int | None:
        """How it ended; None: it runs."""
        code: int | None = self._process.exitcode
        return code

    def tail(self, characters: int = 4_000) -> str:
        """The end of what it has said."""
        return self._log.read_text(errors="replace")[-characters:] if self._log.exists() else ""

    def end(self) -> None:
        """Kills it, and waits until it is gone."""
        if self.exit_code is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)
            self._process.join(30)


_PR_SET_PDEATHSIG = 1


def begin_process(log: Path) -> None:
    """Has this process be one of its own, with its output in a file."""
    os.setsid()
    if sys.platform == "linux":
        # Whoever asked for it may be killed itself.
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(output, 1)
    os.dup2(output, 2)


def _serve(
    settings: dict[str, Any], log: Path, clock: WallClock, disk: DiskSpace, env: dict[str, str]
) -> None:
    begin_process(log)
    disk.limit()
    os.environ.update(env)
    failpoints.rearm(os.environ)
    read = ServerSettings(**settings)
    configure_logging(level=read.log_level, log_format=read.log_format)
    prepare_for_many()
    run(_until_stopped(read, clock.open()))


async def _until_stopped(settings: ServerSettings, clock: Clock) -> None:
    class Clocked(ControlPlane):
        """One whose clock can be set."""

        def __init__(
            self, settings: ServerSettings, store: Store, service: Service, **more: Any
        ) -> None:
            super().__init__(settings, store, service, clock, **more)

    async with Clocked.open(settings) as plane, plane.service.stopping_on_signals():
        await plane.service.wait()
