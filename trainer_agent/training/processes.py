"""The training processes as the launcher sees them: their group, their output, their end.

One process a rank, told of its place as torchrun tells it. torchrun itself would put each rank into
a session of its own, where neither Ctrl-C nor a kill reaches it, and hide how it ended.
"""

from __future__ import annotations

import collections
import contextlib
import os
import selectors
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import IO, Final

from trainer_agent.link.spawn import agent_environment

SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""Signals that are handed on to the training processes."""

_GRACE_SECONDS: Final = 15.0
"""How long the other ranks have for an end of their own once one has failed."""

_TAIL_LINES: Final = 40
_LINE_CHARACTERS: Final = 2_000
_CHUNK: Final = 65_536


@dataclass(frozen=True, slots=True)
class Ended:
    """How training processes came to their end."""

    code: int
    """Exit status of the first that failed, as a shell has it: 128 + N for signal N."""
    died_of: signal.Signals | None
    """The signal that it died of."""
    rank: int
    """Its rank."""
    asked: signal.Signals | None
    """The signal by which the launcher was asked to stop."""
    sent: signal.Signals | None
    """The signal by which it asked the training processes for that."""
    killed: bool
    """Whether the launcher killed it, as it was asked a second time."""
    tail: Sequence[str]
    """The last lines that were printed, of all ranks."""


class Processes:
    """Runs a command once for every rank, all in one process group, and waits for their end.

    A first SIGINT, SIGTERM or SIGHUP asks them to stop, a second one kills them; but one terminal
    that goes away may bring several SIGHUP, so that none of them is a second one.

    Args:
        on_line: Takes each line that they print, and whether it was printed on stderr.
        on_stop: Told of a signal that was handed on, and whether it is a second one.
    """

    def __init__(
        self,
        on_line: Callable[[str, bool], None],
        on_stop: Callable[[signal.Signals, bool], None],
    ) -> None:
        self._on_line = on_line
        self._on_stop = on_stop
        self._tail: collections.deque[str] = collections.deque(maxlen=_TAIL_LINES)
        self._ranks: list[subprocess.Popen[bytes]] = []
        self._received: collections.deque[int] = collections.deque()
        self._asked: signal.Signals | None = None
        self._sent: signal.Signals | None = None
        self._killed = False
        self._failed: int | None = None
        self._kill_at: float | None = None

    def run(
        self,
        command: Sequence[str],
        environment: Mapping[str, str],
        nproc: int = 1,
        watched: Mapping[int, Callable[[], None]] | None = None,
    ) -> Ended:
        """Run a command to its end; once for an object.

        Args:
            command: The command.
            environment: What is added to this process's environment.
            nproc: Ranks; the environment of several tells them so.
            watched: Files that are looked at meanwhile, and what to call when one can be read.

        Raises:
            OSError: It cannot be started.
        """
        watched = watched or {}
        with _signals(self._received.append) as wake, selectors.DefaultSelector() as selector:
            outputs: list[_Output] = []
            try:
                for rank, place in enumerate(_places(nproc)):
                    outputs += self._start(command, {**environment, **place}, rank)
                for output in outputs:
                    selector.register(output.fd, selectors.EVENT_READ, output.read)
                for fd, look in watched.items():
                    selector.register(fd, selectors.EVENT_READ, look)
                selector.register(wake, selectors.EVENT_READ, lambda: _drain(wake))
                while self._running():
                    for key, _ in selector.select(1.0):
                        if key.data() is False:
                            selector.unregister(key.fd)
                    self._hand_on()
            finally:
                # Whatever ends this loop, no rank and no data loader's worker is left behind.
                self._kill_all()
                for process in self._ranks:
                    process.wait()
                # Who outlives training may hold the pipes: their end need not come.
                for output in outputs:
                    output.finish()
            for look in watched.values():
                look()
        return self._ended()

    # ---- Within ----

    def _start(
        self, command: Sequence[str], environment: Mapping[str, str], rank: int
    ) -> list[_Output]:
        process = subprocess.Popen(  # noqa: S603 - no shell, and the arguments are ours
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,
            # Ctrl-C reaches them through this process alone.
            process_group=self._ranks[0].pid if self._ranks else 0,
            env={**agent_environment(), **environment},
        )
        self._ranks.append(process)
        prefix = f"[rank {rank}] " if rank else ""
        made = []
        for stream, error in ((process.stdout, False), (process.stderr, True)):
            assert stream is not None
            made.append(_Output(stream, prefix, error, self._line))
        return made

    def _running(self) -> bool:
        running = False
        for rank, process in enumerate(self._ranks):
            status = process.poll()
            if status is None:
                running = True
            elif status != 0 and self._failed is None:
                self._failed = rank
                self._kill_at = time.monotonic() + _GRACE_SECONDS
        if running and self._kill_at is not None and time.monotonic() > self._kill_at:
            self._kill_all()
        return running

    def _hand_on(self) -> None:
        while self._received:
            number = self._received.popleft()
            if number not in SIGNALS:
                continue
            received = signal.Signals(number)
            again = self._asked is not None
            if again and received == signal.SIGHUP:
                continue
            if again:
                self._killed = True
                self._kill_all()
            else:
                self._ask(received)
            self._on_stop(received, again)

    def _ask(self, received: signal.Signals) -> None:
        self._asked = received
        # A hang-up asks for the same.
        self._sent = signal.SIGTERM if received == signal.SIGHUP else received
        for process in self._ranks:
            # Not what it has started: a data loader's worker would die of it, and training too.
            process.send_signal(self._sent)

    def _kill_all(self) -> None:
        if self._ranks:
            with contextlib.suppress(ProcessLookupError, PermissionError):  # they are gone
                os.killpg(self._ranks[0].pid, signal.SIGKILL)

    def _line(self, line: str, error: bool) -> None:
        self._tail.append(line[:_LINE_CHARACTERS])
        self._on_line(line, error)

    def _ended(self) -> Ended:
        rank = self._failed or 0
        status = self._ranks[rank].returncode
        return Ended(
            code=128 - status if status < 0 else status,
            died_of=signal.Signals(-status) if status < 0 else None,
            rank=rank,
            asked=self._asked,
            sent=self._sent,
            killed=self._killed,
            tail=tuple(self._tail),
        )


class _Output:
    """One stream of one rank, in lines."""

    def __init__(
        self, stream: IO[bytes], prefix: str, error: bool, on_line: Callable[[str, bool], None]
    ) -> None:
        os.set_blocking(stream.fileno(), False)
        self.fd = stream.fileno()
        self._stream = stream
        self._prefix = prefix
        self._error = error
        self._on_line = on_line
        self._rest = b""

    def read(self) -> bool:
        """Read what is there; False: it has come to its end."""
        try:
            chunk = os.read(self.fd, _CHUNK)
        except BlockingIOError:
            return True
        *lines, self._rest = (self._rest + chunk).split(b"\n")
        if len(self._rest) > _CHUNK:  # no line is as long
            lines, self._rest = [*lines, self._rest], b""
        for line in lines:
            self._take(line)
        return bool(chunk)

    def finish(self) -> None:
        """Read what is left, and close the stream."""
        with contextlib.suppress(BlockingIOError):
            while chunk := os.read(self.fd, _CHUNK):
                self._rest += chunk
        *lines, last = self._rest.split(b"\n")
        for line in [*lines, last] if last else lines:
            self._take(line)
        self._stream.close()

    def _take(self, line: bytes) -> None:
        text = line.decode(errors="replace").rstrip("\r")
        # Of a bar that is drawn over itself, the last state.
        self._on_line(f"{self._prefix}{text.rpartition(chr(13))[2]}", self._error)


def python(module: str, *arguments: str) -> list[str]:
    """Return the command that runs a module of ours in this interpreter."""
    # -P: a file of the current directory must not stand in for a module.
    return [sys.executable, "-P", "-X", "faulthandler", "-m", module, *arguments]


def _places(nproc: int) -> Iterator[dict[str, str]]:
    """Yield what torchrun tells each rank; nothing to one that is alone."""
    if nproc == 1:
        yield {}
        return
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    for rank in range(nproc):
        yield {
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(nproc),
            "LOCAL_WORLD_SIZE": str(nproc),
            # As torchrun has it: else every rank takes all processors for its own.
            "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"),
        }


def _drain(fd: int) -> None:
    with contextlib.suppress(BlockingIOError):
        os.read(fd, _CHUNK)


@contextlib.contextmanager
def _signals(received: Callable[[int], None]) -> Iterator[int]:
    """Collect signals, and give a file that can be read when one has come."""
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    os.set_blocking(writer, False)
    before = {
        number: signal.signal(number, lambda got, _: received(got))
        for number in (*SIGNALS, signal.SIGCHLD)
        # What nohup ignores stays ignored.
        if number == signal.SIGCHLD or signal.getsignal(number) is not signal.SIG_IGN
    }
    waker = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    try:
        yield reader
    finally:
        signal.set_wakeup_fd(waker)
        for number, handler in before.items():
            signal.signal(number, handler)
        os.close(reader)
        os.close(writer)
