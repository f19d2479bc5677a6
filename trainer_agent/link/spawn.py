"""Starts agent processes for a trainer, by exec and never by forking Python code."""

from __future__ import annotations

import atexit
import os
import socket
import subprocess
import sys
import sysconfig
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import midcourse.link.v1

LOG_LIMIT_BYTES: Final = 4 * 1024 * 1024
_BACKOFF_FIRST: Final = 0.2
_BACKOFF_LAST: Final = 30.0
_BACKOFF_FACTOR: Final = 2.0
# Files that the environment names for the agent, see grpc_runtime.client.credentials.
FILE_VARIABLES: Final = (
    "MIDCOURSE_TOKEN_FILE",
    "MIDCOURSE_TLS_CA",
    "MIDCOURSE_CLIENT_CERT",
    "MIDCOURSE_CLIENT_KEY",
)
_NO_FILE: Final = "system"

# Agents that their trainer no longer watches. They are collected here, for a process that goes on
# for long after its training: nothing of theirs stays in the process table.
_left_behind: list[subprocess.Popen[bytes]] = []


class AgentSpawner:
    """Starts agents, each once the one before is gone, and more slowly when they die at once.

    Attributes:
        spawned: Agents started so far.
    """

    def __init__(self, arguments: Sequence[str], *, directory: Path, log: Path) -> None:
        """Prepares to start agents.

        Args:
            arguments: Command-line arguments of ``python -m trainer_agent``.
            directory: Directory that they run in.
            log: File that their output goes to.
        """
        self._arguments = tuple(arguments)
        self._directory = directory
        self._log = log
        self._process: subprocess.Popen[bytes] | None = None
        self._backoff = _BACKOFF_FIRST
        self._not_before = 0.0
        self.spawned = 0

    @property
    def pid(self) -> int | None:
        """Process id of the agent that runs; None: none that was started here does."""
        return None if self._process is None else self._process.pid

    def running(self) -> bool:
        """Tells whether an agent started here runs; collects it if it has ended."""
        if self._process is None:
            return False
        if self._process.poll() is None:
            return True
        self._process = None
        return False

    def proven(self) -> None:
        """Notes that an agent has done its work for a while: the next is started soon again."""
        self._backoff = _BACKOFF_FIRST
        self._not_before = 0.0

    def spawn_if_due(self) -> socket.socket | None:
        """Starts an agent unless one runs or the last ones died too soon after one another.

        Returns:
            A connection to the agent: it need not listen yet to be talked to. None: none was due.

        Raises:
            OSError: It could not be started.
        """
        if self.running():
            return None
        now = time.monotonic()
        if now < self._not_before:
            return None
        self._not_before = now + self._backoff
        self._backoff = min(self._backoff * _BACKOFF_FACTOR, _BACKOFF_LAST)
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            with theirs:
                self._process = self._spawn(theirs.fileno())
        except OSError:
            ours.close()
            raise
        self.spawned += 1
        return ours

    def leave(self) -> None:
        """Lets the agent go on by itself."""
        _collect_left_behind()
        if self.running() and self._process is not None:
            _left_behind.append(self._process)
        self._process = None

    def forget_after_fork(self) -> None:
        """Gives up the agent in a forked child, whose process it is not."""
        if self._process is not None:
            self._process.returncode = 0  # else its destructor would look for a child
        self._process = None

    def _spawn(self, trainer_fd: int) -> subprocess.Popen[bytes]:
        if not sys.executable:
            raise FileNotFoundError(
                "no agent can be started: this program embeds Python and sys.executable is empty; "
                "start `python -m trainer_agent` by hand"
            )
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
        log = os.open(self._log, flags, 0o600)
        try:
            cut_log(log)
            # -P: a file of the training script's directory must not stand in for a module.
            command = [sys.executable, "-P", "-m", "trainer_agent", *self._arguments]
            return subprocess.Popen(  # noqa: S603 - no shell, and the arguments are ours
                [*command, "--trainer-fd", str(trainer_fd)],
                pass_fds=[trainer_fd],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C in the terminal ends the trainer, not the report
                cwd=self._directory,
                env=agent_environment(),
            )
        finally:
            os.close(log)


def cut_log(log: int) -> None:
    """Empties a file that an agent's log goes to, where it has grown large.

    Args:
        log: A descriptor that appends.
    """
    if os.fstat(log).st_size > LOG_LIMIT_BYTES:
        os.ftruncate(log, 0)


def agent_environment() -> dict[str, str]:
    """Returns this process's environment, so that a child finds the packages that this one did."""
    environment = dict(os.environ)
    standard = {Path(sysconfig.get_path(name)).resolve() for name in ("purelib", "platlib")}
    roots = [Path(__file__).parents[2], Path(midcourse.link.v1.__path__[0]).parents[2]]
    path = [str(root) for root in dict.fromkeys(roots) if root.resolve() not in standard]
    # What is relative means this process's directory, which is not the child's.
    inherited = environment.get("PYTHONPATH", "")
    path += [str(Path(entry).absolute()) for entry in inherited.split(os.pathsep) if entry]
    if path:
        environment["PYTHONPATH"] = os.pathsep.join(dict.fromkeys(path))
    for variable in FILE_VARIABLES:
        if (named := environment.get(variable)) and named != _NO_FILE:
            environment[variable] = str(Path(named).expanduser().absolute())
    return environment


def _collect_left_behind() -> None:
    _left_behind[:] = [process for process in _left_behind if process.poll() is None]


@atexit.register
def _let_go() -> None:
    _collect_left_behind()
    for process in _left_behind:
        process.returncode = 0  # it outlives this process, and means to: nothing to warn of
