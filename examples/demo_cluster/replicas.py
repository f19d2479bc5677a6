"""Replicas of the control plane on one PostgreSQL, each a process on a port of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from examples.demo.processes import Process, address_of

_HEARTBEAT: Final = "0.5"
_GRACE: Final = 10.0


class Replicas:
    """Starts replicas, and leaves none behind; a context manager."""

    def __init__(self, directory: Path, database: str) -> None:
        """Uses the directory for logs.

        Args:
            directory: Where the logs go.
            database: Address of the PostgreSQL database that they share.
        """
        self._directory = directory
        self._database = database
        self._started: list[Process] = []
        self._serving: dict[str, Process] = {}

    @property
    def addresses(self) -> list[str]:
        """Addresses of those that are alive."""
        return list(self._serving)

    def start(self, count: int) -> None:
        """Starts so many, side by side.

        Raises:
            DemoError: One does not serve.
        """
        for process in [self._start(number) for number in range(1, count + 1)]:
            self._serving[address_of(process)] = process

    def kill(self, address: str) -> None:
        """Ends one without giving it the time for a word, as a host does that loses its power."""
        self._serving.pop(address).kill()

    def _start(self, number: int) -> Process:
        # In the environment, as the list of processes shows everybody a command line.
        environment = {**os.environ, "MIDCOURSE_DATABASE": self._database}
        name = f"replica-{number}"
        log = self._directory / f"{name}.log"
        command = ["control_plane.cli", "serve", "--listen", "127.0.0.1:0"]
        command += ["--heartbeat-interval", _HEARTBEAT, "--log-format", "json"]
        with log.open("wb") as output:
            popen = subprocess.Popen(  # noqa: S603 - no shell, and the arguments are ours
                [sys.executable, "-m", *command],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,  # Ctrl-C is for the demo, which ends them in order
            )
        process = Process(name, popen, log)
        self._started.append(process)
        return process

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for process in self._started:
            process.popen.terminate()  # all of them, so that they end side by side
        for process in self._started:
            process.stop(_GRACE)
