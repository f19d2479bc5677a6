"""A demo's processes: the services, a training run and its agent; and how they end."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

_LAST_LINES: Final = 25
_START_TIMEOUT: Final = 30.0
_TRAINER_GRACE: Final = 5.0
_AGENT_GRACE: Final = 10.0
_SERVER_GRACE: Final = 5.0
_POLL: Final = 0.02
_HEARTBEAT: Final = "0.2"
"""Seconds between an agent's reports: a demo is to see each step soon."""
_AGENT_HAS_ENDED: Final = {"ended", "ended_with_losses", "not_needed"}


class DemoError(Exception):
    """The demo can not go on.

    Attributes:
        log: What the process at fault said last; empty: there is nothing.
    """

    def __init__(self, message: str, log: str = "") -> None:
        super().__init__(message)
        self.log = log


@dataclass(frozen=True, slots=True)
class Process:
    """A process whose output goes to a file."""

    name: str
    popen: subprocess.Popen[bytes]
    log: Path

    def failed(self, message: str) -> DemoError:
        """Returns the error with the last lines of the log."""
        return DemoError(message, last_lines(self.log))

    def check_running(self) -> None:
        """Makes sure that the process has not ended.

        Raises:
            DemoError: It has.
        """
        code = self.popen.poll()
        if code is not None:
            raise self.failed(f"{self.name} {_ended(code)}")

    def wait(self, timeout: float) -> None:
        """Waits until the process has ended well.

        Raises:
            DemoError: It has failed, or goes on.
        """
        try:
            code = self.popen.wait(timeout)
        except subprocess.TimeoutExpired:
            raise self.failed(f"{self.name} has not ended after {timeout:.0f} s") from None
        if code != 0:
            raise self.failed(f"{self.name} {_ended(code)}")

    def stop(self, grace: float) -> None:
        """Asks the process to end; kills it where it does not within ``grace`` seconds."""
        if self.popen.poll() is None:
            self.popen.terminate()
            try:
                self.popen.wait(grace)
            except subprocess.TimeoutExpired:
                self.kill()

    def kill(self) -> None:
        """Ends the process at once."""
        self.popen.kill()
        self.popen.wait()


class Processes:
    """Starts the processes in a directory, and leaves none behind.

    A context manager: in the end the trainer is stopped, then its agent, then the analytics service
    and the control plane, so that each can still say its last words to the next.
    """

    def __init__(self, directory: Path) -> None:
        """Uses the directory for logs, database and sockets."""
        self._directory = directory
        # Short, as the address of a socket may be no longer than some 100 characters.
        self._sockets = directory / "s"
        self._server: Process | None = None
        self._analytics: Process | None = None
        self._trainer: Process | None = None

    def start_control_plane(self) -> str:
        """Starts ``midcourse serve`` on a free port and returns its address.

        Raises:
            DemoError: It does not serve.
        """
        self._server, address = self._start_service(
            "the control plane", "serve", ["--heartbeat-interval", _HEARTBEAT]
        )
        return address

    def start_analytics(self, *arguments: str, control_plane: str) -> str:
        """Starts ``midcourse analytics serve`` on a free port and returns its address.

        Raises:
            DemoError: It does not serve.
        """
        self._analytics, address = self._start_service(
            "the analytics service",
            "analytics",
            ["serve", "--control-plane", control_plane, *arguments],
        )
        return address

    def start_trainer(self, module: str, *arguments: str, control_plane: str) -> Process:
        """Starts the training run that a module is."""
        environment = {
            **os.environ,
            "MIDCOURSE_CONTROL_PLANE": control_plane,
            "MIDCOURSE_SOCKET_DIR": str(self._sockets),
            "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": "1",
            "TOKENIZERS_PARALLELISM": "false",
        }
        self._trainer = self._start(
            "the training run", "trainer", [module, *arguments], environment
        )
        return self._trainer

    @property
    def control_plane(self) -> Process | None:
        """The control plane; None: not started."""
        return self._server

    def agent_log(self) -> Path | None:
        """Returns where the trainer's agent writes its log; None: there is none yet."""
        return next(iter(self._sockets.glob("*.log")), None)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Stops everything; a second Ctrl-C kills it."""
        try:
            if self._trainer is not None:
                self._trainer.stop(_TRAINER_GRACE)
            self._end_agent()
            for service in (self._analytics, self._server):
                if service is not None:
                    service.stop(_SERVER_GRACE)
        except BaseException:
            for process in (self._trainer, self._analytics, self._server):
                if process is not None:
                    process.kill()
            self._signal_agent(signal.SIGKILL)
            raise

    def _start_service(self, name: str, verb: str, arguments: Sequence[str]) -> tuple[Process, str]:
        """Starts a service with a new database on a free port; returns it with its address."""
        database = str(self._directory / f"{verb}.db")
        command = ["control_plane.cli", verb, *arguments, "--listen", "127.0.0.1:0"]
        process = self._start(
            name, verb, [*command, "--database", database, "--log-format", "json"], os.environ
        )
        try:
            return process, address_of(process)
        except BaseException:
            process.stop(_SERVER_GRACE)
            raise

    def _start(
        self, name: str, log_name: str, command: Sequence[str], environment: Mapping[str, str]
    ) -> Process:
        log = self._directory / f"{log_name}.log"
        with log.open("wb") as output:
            popen = subprocess.Popen(  # noqa: S603 - no shell, and the arguments are ours
                [sys.executable, "-m", *command],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=dict(environment),
                start_new_session=True,  # Ctrl-C is for the demo, which ends them in order
            )
        return Process(name, popen, log)

    def _end_agent(self) -> None:
        """Waits for the agent, which ends by itself; hurries it where it takes long."""
        if self._agent_ended_within(_AGENT_GRACE):
            return
        self._signal_agent(signal.SIGTERM)
        if not self._agent_ended_within(_AGENT_GRACE):
            self._signal_agent(signal.SIGKILL)

    def _agent_ended_within(self, seconds: float) -> bool:
        deadline = time.monotonic() + seconds
        while any(self._agents()):
            if time.monotonic() >= deadline:
                return False
            if self._server is not None and self._server.popen.poll() is not None:
                return False  # it would wait for the control plane to come back
            time.sleep(_POLL)
        return True

    def _signal_agent(self, number: signal.Signals) -> None:
        for pid in self._agents():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def _agents(self) -> Iterator[int]:
        """Yields the process ids of agents that have begun and not ended, by their log."""
        log = self.agent_log()
        alive: dict[int, None] = {}
        for event in _events(log) if log is not None else ():
            if event.get("event") == "listening":
                alive[int(event["pid"])] = None
            elif event.get("event") in _AGENT_HAS_ENDED:
                alive.clear()
        yield from alive


def last_lines(log: Path, count: int = _LAST_LINES) -> str:
    """Returns the last lines of a log; of a progress bar what it showed last."""
    lines = log.read_bytes().decode("utf-8", "replace").rstrip().split("\n")
    return "\n".join(line.rstrip("\r").rpartition("\r")[2] for line in lines[-count:])


def address_of(service: Process) -> str:
    """Waits until a service says where it serves.

    Raises:
        DemoError: It does not.
    """
    deadline = time.monotonic() + _START_TIMEOUT
    while time.monotonic() < deadline:
        for event in _events(service.log):
            if event.get("event") == "serving":
                return str(event["address"])
        service.check_running()
        time.sleep(_POLL)
    raise service.failed(f"{service.name} does not serve after {_START_TIMEOUT:.0f} s")


def _events(log: Path) -> Iterator[dict[str, Any]]:
    """Yields the JSON lines of a log."""
    for line in log.read_text(encoding="utf-8", errors="replace").splitlines():
        with contextlib.suppress(ValueError):
            event = json.loads(line)
            if isinstance(event, dict):
                yield event


def _ended(code: int) -> str:
    if code < 0:
        return f"was ended by {signal.Signals(-code).name}"
    return f"has ended with exit status {code}"
