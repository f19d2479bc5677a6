"""The trainer's end of the link: never blocks a step, never raises into one, starts no thread."""

from __future__ import annotations

import logging
import os
import select
import socket
import sys
import time
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Final

from google.protobuf.message import DecodeError, EncodeError

from midcourse.link.v1 import link_pb2
from trainer_agent.link.address import LinkAddress, LinkAddressError, locate, prepare_directory
from trainer_agent.link.framing import FrameDecoder, FramingError, frame
from trainer_agent.link.outbox import Keep, Outbox
from trainer_agent.link.peer import require_own_user
from trainer_agent.link.protocol import (
    FINAL_REASONS,
    LINK_VERSION_UNSUPPORTED,
    PROTOCOL_VERSION,
)
from trainer_agent.link.spawn import AgentSpawner

_logger = logging.getLogger(__name__)

DEFAULT_BUFFER_BYTES: Final = 1024 * 1024
"""Room for messages while no agent takes them: some 10,000 steps."""

SOCKET_DIRECTORY_UNUSABLE: Final = "SOCKET_DIRECTORY_UNUSABLE"
"""Reason for being detached: there is no safe place for the socket."""

_RECEIVE_BYTES: Final = 64 * 1024
_RECEIVES_PER_POLL: Final = 64  # so that no poll takes more than 4 MiB, however fast they come
# An agent that was started beside another one ends: it is collected at some later step.
_POLLS_PER_COLLECTION: Final = 256
_CONNECT_INTERVAL: Final = 0.05
_FAILURE_BACKOFF_LAST: Final = 30.0
_DETACHED_RETRY: Final = 60.0
_PROVEN_AFTER: Final = 10.0
# Without it a SIGPIPE could end the training process. macOS has a socket option instead.
_SEND_FLAGS: Final = getattr(socket, "MSG_NOSIGNAL", 0)
_SO_NOSIGPIPE: Final = 0x1022

_NOTHING: Final[tuple[link_pb2.AgentMessage, ...]] = ()


class LinkState(Enum):
    """What a link is doing."""

    IDLE = "idle"
    """Not started."""
    CONNECTING = "connecting"
    """No agent has answered yet, or not again; what is sent waits."""
    CONNECTED = "connected"
    """An agent has answered."""
    DETACHED = "detached"
    """Steering has ended, for good or until an agent answers again; see the reason."""
    CLOSED = "closed"
    """Closed, or a forked child's copy, which does nothing."""


@dataclass(frozen=True, slots=True)
class LinkStatus:
    """How a link stands.

    Attributes:
        state: What it is doing.
        reason: Why it is detached, UPPER_SNAKE_CASE; empty otherwise.
        message: The newest trouble in words; empty: none since an agent last answered.
        agent_pid: Process id of the agent that answered; None: none is connected.
        agent_version: Its software's version; empty: none is connected.
        dropped_steps: Step reports dropped for lack of room so far.
        buffered_bytes: What waits for an agent.
        connections: Agents that answered so far, each reconnection counted.
    """

    state: LinkState
    reason: str
    message: str
    agent_pid: int | None
    agent_version: str
    dropped_steps: int
    buffered_bytes: int
    connections: int


class TrainerLink:
    """Connects a training process with its agent, and starts an agent where there is none.

    ``send`` and ``poll`` return at once and raise nothing: whatever fails shows in ``status`` and,
    once per kind of trouble, in the log. All waiting, reconnecting and starting of agents is done
    in small pieces by ``poll``, so call it at every step. Not for use by several threads at once.

    Messages that were given to an agent which then died are gone. So the hello of each new
    connection must tell everything that is worth keeping: the full state with every outcome that
    no ``OutcomesStored`` has named yet. Step reports that still wait here are sent after it.

    A forked child's copy of a link is closed by itself and leaves the parent's alone.
    """

    def __init__(
        self,
        *,
        job_id: str,
        hello: Callable[[], link_pb2.TrainerHello],
        control_plane: str | None = None,
        socket_dir: str | os.PathLike[str] | None = None,
        spawn: bool = True,
        agent_arguments: Sequence[str] = (),
        buffer_bytes: int = DEFAULT_BUFFER_BYTES,
    ) -> None:
        """Prepares a link; touches nothing yet.

        Args:
            job_id: Id of the job.
            hello: Builds the first message of a connection, called for each anew. The link itself
                fills in protocol version, job id, process id and control plane.
            control_plane: Address of the control plane, ``host:port``; None: as the agent is told
                by its environment.
            socket_dir: Directory of the socket; None: see :func:`~trainer_agent.link.locate`.
            spawn: Start an agent where none listens. False: one is started otherwise, for
                instance as a sidecar.
            agent_arguments: Further arguments for an agent started here, such as
                ``["--log-level", "debug"]``.
            buffer_bytes: Room for messages while no agent takes them.
        """
        self._job_id = job_id
        self._make_hello = hello
        self._control_plane = control_plane or ""
        self._socket_dir = socket_dir
        self._spawn = spawn
        self._agent_arguments = tuple(agent_arguments)

        self._address: LinkAddress | None = None
        self._spawner: AgentSpawner | None = None
        self._socket: socket.socket | None = None
        self._decoder = FrameDecoder()
        self._receive_buffer = bytearray(_RECEIVE_BYTES)
        self._hello_left = memoryview(b"")
        self._outbox = Outbox(buffer_bytes)
        self._waiting = False  # hello or outbox has something to send
        self._inbox: list[link_pb2.AgentMessage] = []

        self._state = LinkState.IDLE
        self._welcome: link_pb2.AgentWelcome | None = None
        self._detached: link_pb2.Detached | None = None
        self._trouble = ""
        self._connections = 0
        self._unsendable = 0
        self._failures = 0
        self._polls = 0
        self._connected_at = 0.0
        self._attempt_at = 0.0
        _links.add(self)

    @property
    def status(self) -> LinkStatus:
        """How the link stands."""
        return LinkStatus(
            state=self._state,
            reason=self._detached.reason if self._detached else "",
            message=self._detached.message if self._detached else self._trouble,
            agent_pid=(self._welcome.pid or None) if self._welcome else None,
            agent_version=self._welcome.agent_version if self._welcome else "",
            dropped_steps=self._outbox.dropped + self._unsendable,
            buffered_bytes=self._outbox.size_bytes + len(self._hello_left),
            connections=self._connections,
        )

    def start(self) -> None:
        """Connects to the agent if one listens, else starts one and lets ``poll`` connect."""
        if self._state is not LinkState.IDLE:
            return
        self._state = LinkState.CONNECTING
        try:
            self._address = locate(self._job_id, self._socket_dir)
            prepare_directory(self._address.directory)
        except LinkAddressError as error:
            self._detach(
                link_pb2.Detached(reason=SOCKET_DIRECTORY_UNUSABLE, message=str(error)), final=True
            )
            return
        if self._spawn:
            arguments = ["--job", self._job_id, "--socket-dir", str(self._address.directory)]
            if self._control_plane:
                arguments += ["--control-plane", self._control_plane]
            self._spawner = AgentSpawner(
                [*arguments, *self._agent_arguments],
                directory=self._address.directory,
                log=self._address.log,
            )
        self._maintain()

    def wait_ready(self, timeout: float) -> bool:
        """Waits until an agent has answered; for tests and demonstrations.

        Args:
            timeout: Longest wait, in seconds.

        Returns:
            Whether one has.
        """
        deadline = time.monotonic() + timeout
        while not self._answered():
            left = deadline - time.monotonic()
            if left <= 0 or self._over():
                return False
            self._inbox.extend(self.poll())
            if not self._answered():
                self._wait_for_socket(left)
        return True

    def send(self, message: link_pb2.TrainerMessage) -> None:
        """Sends a message, or keeps it until an agent takes it.

        When the buffer is full, step reports are dropped, from the middle, and counted; nothing
        else is. Before ``start`` messages are kept; after ``close`` they are ignored.
        """
        if self._over():
            return
        try:
            payload = message.SerializeToString()
            data = frame(payload)
        except (EncodeError, FramingError) as error:
            self._unsendable += 1
            self._note(f"a message could not be sent: {error}")
            return
        sent = 0
        if self._socket is not None and not self._waiting:
            try:
                sent = self._socket.send(data, _SEND_FLAGS)
                if sent == len(data):
                    return
            except (BlockingIOError, InterruptedError):
                pass
            except OSError as error:
                self._lose(f"the connection to the agent broke: {error.strerror or error}")
        self._outbox.append(data, keep=_keep(message), sent=sent)
        self._waiting = True

    def poll(self) -> Sequence[link_pb2.AgentMessage]:
        """Returns what has come in from the agent, oldest first: no welcome, but all else.

        Also sends what waits, and connects or starts an agent where that is due. Deliveries may
        come again after a reconnection; the receiver tells duplicates by their revision.
        """
        connection = self._socket
        if connection is not None and not self._waiting and not self._inbox:
            # All that an ordinary step does here.
            self._polls += 1
            if self._spawner is not None and not self._polls % _POLLS_PER_COLLECTION:
                self._spawner.running()
            try:
                size = connection.recv_into(self._receive_buffer)
            except (BlockingIOError, InterruptedError):
                return _NOTHING
            except OSError as error:
                self._lose(f"the connection to the agent broke: {error.strerror or error}")
            else:
                self._take(size)
                self._receive(_RECEIVES_PER_POLL - 1)
        elif self._state is not LinkState.IDLE and not self._over():
            self._maintain()
        if not self._inbox:
            return _NOTHING
        messages, self._inbox = self._inbox, []
        return messages

    def close(self, error: str | None = None, timeout: float = 5.0) -> bool:
        """Says goodbye and sends what waits, then closes. The agent delivers it by itself.

        Args:
            error: Type and message of the exception that ends the training process; None: it ends
                in good order.
            timeout: Longest wait for an agent to take what waits, in seconds.

        Returns:
            Whether an agent has taken everything; what it has not is lost.
        """
        if self._state is LinkState.IDLE or self._over():
            self._end()
            return False
        goodbye = link_pb2.TrainerGoodbye(error=error or "")
        self.send(link_pb2.TrainerMessage(goodbye=goodbye))
        deadline = time.monotonic() + timeout
        while not self._over() and (self._waiting or self._socket is None):
            left = deadline - time.monotonic()
            if left <= 0 or (self._detached is not None and self._socket is None):
                break
            self.poll()
            if self._waiting or self._socket is None:
                self._wait_for_socket(left)
        delivered = self._socket is not None and not self._waiting
        self._end()
        return delivered

    def _answered(self) -> bool:
        return self._state is LinkState.CONNECTED

    def _over(self) -> bool:
        return self._state is LinkState.CLOSED or (
            self._state is LinkState.DETACHED and self._attempt_at == float("inf")
        )

    def _end(self) -> None:
        self._close_socket()
        self._state = LinkState.CLOSED
        if self._spawner is not None:
            self._spawner.leave()

    # ---------------------------------------------------------------------------- connecting

    def _maintain(self) -> None:
        """Does whatever is due: connect, send what waits, receive."""
        if self._socket is None and time.monotonic() >= self._attempt_at:
            self._connect()
        if self._socket is not None and self._waiting:
            self._flush()
        if self._socket is not None:
            self._receive(_RECEIVES_PER_POLL)

    def _connect(self) -> None:
        assert self._address is not None
        self._attempt_at = time.monotonic() + _CONNECT_INTERVAL
        connection: socket.socket | None = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        assert connection is not None
        try:
            connection.setblocking(False)
            connection.connect(str(self._address.socket))
        except (FileNotFoundError, ConnectionRefusedError):
            connection.close()
            connection = self._spawn_agent()
        except OSError as error:
            connection.close()
            self._failed(f"no connection to the agent: {error.strerror or error}")
            return
        if connection is not None:
            self._begin(connection)

    def _begin(self, connection: socket.socket) -> None:
        """Begins to talk to an agent."""
        try:
            connection.setblocking(False)
            if sys.platform == "darwin":
                connection.setsockopt(socket.SOL_SOCKET, _SO_NOSIGPIPE, 1)
            require_own_user(connection)
            hello = link_pb2.TrainerHello()
            hello.CopyFrom(self._make_hello())
            hello.protocol_version = PROTOCOL_VERSION
            hello.job_id = self._job_id
            hello.pid = os.getpid()
            hello.control_plane = hello.control_plane or self._control_plane
            data = frame(link_pb2.TrainerMessage(hello=hello).SerializeToString())
        except Exception as error:  # noqa: BLE001 - the caller's hello; it must not harm a step
            connection.close()
            self._failed(f"no hello to the agent: {type(error).__name__}: {error}")
            return
        self._socket = connection
        self._decoder = FrameDecoder()
        self._hello_left = memoryview(data)
        self._outbox.begin_stream()
        self._waiting = True
        self._connected_at = time.monotonic()

    def _spawn_agent(self) -> socket.socket | None:
        if self._spawner is None or self._address is None:
            return None
        try:
            prepare_directory(self._address.directory)
            connection = self._spawner.spawn_if_due()
        except (OSError, LinkAddressError) as error:
            self._note(f"no agent could be started: {error}")
            return None
        if connection is not None and self._spawner.spawned > 1:
            self._note(f"the agent was gone; another one was started (log: {self._address.log})")
        return connection

    def _failed(self, trouble: str) -> None:
        """Notes a failure that trying again at once will hardly mend."""
        self._note(trouble)
        self._failures += 1
        delay = min(_CONNECT_INTERVAL * 2.0 ** min(self._failures, 32), _FAILURE_BACKOFF_LAST)
        self._attempt_at = max(self._attempt_at, time.monotonic() + delay)

    def _lose(self, trouble: str) -> None:
        """Gives up the connection; ``poll`` makes another one."""
        had_answered = self._welcome is not None
        if self._spawner is not None and time.monotonic() - self._connected_at > _PROVEN_AFTER:
            self._spawner.proven()
        self._close_socket()
        if self._state is LinkState.DETACHED:
            self._attempt_at = max(self._attempt_at, time.monotonic() + _DETACHED_RETRY)
            return
        self._state = LinkState.CONNECTING
        if had_answered:
            self._note(trouble)
        else:
            self._failed(trouble)

    def _close_socket(self) -> None:
        if self._socket is not None:
            self._socket.close()
        self._socket = None
        self._welcome = None
        self._hello_left = memoryview(b"")
        self._waiting = bool(self._outbox)

    def _note(self, trouble: str) -> None:
        if trouble != self._trouble:
            _logger.warning("job %s: %s; training goes on", self._job_id, trouble)
        self._trouble = trouble

    def _detach(self, detached: link_pb2.Detached, *, final: bool) -> None:
        if self._detached is None or self._detached.reason != detached.reason:
            _logger.warning(
                "job %s: steering has ended, training goes on: %s (%s)",
                self._job_id,
                detached.message,
                detached.reason,
            )
        self._detached = detached
        self._state = LinkState.DETACHED
        if final:
            self._close_socket()
            self._attempt_at = float("inf")

    # ------------------------------------------------------------------- sending and receiving

    def _flush(self) -> None:
        assert self._socket is not None
        try:
            while self._hello_left:
                sent = self._socket.send(self._hello_left, _SEND_FLAGS)
                self._hello_left = self._hello_left[sent:]
            while self._outbox:
                self._outbox.advance(self._socket.send(self._outbox.first(), _SEND_FLAGS))
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            # What the agent said last may tell why.
            self._receive(_RECEIVES_PER_POLL)
            if self._socket is not None:
                self._lose(f"the connection to the agent broke: {error.strerror or error}")
            return
        self._waiting = False

    def _receive(self, times: int) -> None:
        """Receives until there is no more, or so many times."""
        for _ in range(times):
            if self._socket is None:
                return
            try:
                size = self._socket.recv_into(self._receive_buffer)
            except (BlockingIOError, InterruptedError):
                return
            except OSError as error:
                self._lose(f"the connection to the agent broke: {error.strerror or error}")
                return
            self._take(size)

    def _take(self, size: int) -> None:
        """Takes in what was received."""
        if size == 0:
            self._lose("the agent closed the connection")
            return
        try:
            for payload in self._decoder.feed(memoryview(self._receive_buffer)[:size]):
                self._handle(link_pb2.AgentMessage.FromString(payload))
        except (FramingError, DecodeError) as error:
            self._close_socket()
            if not self._over():
                self._state = LinkState.CONNECTING
                self._failed(f"the agent sent something that can not be read: {error}")

    def _handle(self, message: link_pb2.AgentMessage) -> None:
        kind = message.WhichOneof("message")
        if kind is None:
            return  # from a newer agent
        if kind == "welcome":
            self._welcomed(message.welcome)
            return
        if kind == "detached":
            self._detach(message.detached, final=message.detached.reason in FINAL_REASONS)
        self._inbox.append(message)

    def _welcomed(self, welcome: link_pb2.AgentWelcome) -> None:
        if welcome.protocol_version != PROTOCOL_VERSION:
            detached = link_pb2.Detached(
                reason=LINK_VERSION_UNSUPPORTED,
                message=f"the agent speaks version {welcome.protocol_version} of the local wire, "
                f"this process version {PROTOCOL_VERSION}; start the agent from the same "
                f"installation",
            )
            self._detach(detached, final=True)
            self._inbox.append(link_pb2.AgentMessage(detached=detached))
            return
        self._welcome = welcome
        self._state = LinkState.CONNECTED
        self._detached = None
        self._trouble = ""
        self._connections += 1
        self._failures = 0

    def _wait_for_socket(self, seconds: float) -> None:
        """Waits until the socket has news, or for a moment."""
        seconds = min(seconds, _CONNECT_INTERVAL)
        if self._socket is None:
            time.sleep(seconds)
            return
        poller = select.poll()
        poller.register(self._socket, select.POLLIN | (select.POLLOUT if self._waiting else 0))
        poller.poll(seconds * 1000)

    def _forget_after_fork(self) -> None:
        self._close_socket()  # closes this process's descriptor; the parent's stays open
        self._state = LinkState.CLOSED
        if self._spawner is not None:
            self._spawner.forget_after_fork()


def _keep(message: link_pb2.TrainerMessage) -> Keep:
    match message.WhichOneof("message"):
        case "step":
            return Keep.IF_ROOM
        case "state" | "outcome":
            return Keep.UNTIL_HELLO
        case _:
            return Keep.ALWAYS


_links: weakref.WeakSet[TrainerLink] = weakref.WeakSet()


def _forget_links_after_fork() -> None:
    for link in _links:
        link._forget_after_fork()  # noqa: SLF001 - of this very module


os.register_at_fork(after_in_child=_forget_links_after_fork)
