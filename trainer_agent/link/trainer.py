"""The trainer's end of the link: never blocks a step, never raises into one, starts no thread."""

from __future__ import annotations

import logging
import math
import os
import socket
import time
import weakref
from collections.abc import Callable, Sequence
from typing import Final

from google.protobuf.message import EncodeError

from midcourse.link.v1 import link_pb2
from trainer_agent.link.address import LinkAddress, LinkAddressError, locate, prepare_directory
from trainer_agent.link.connection import (
    AgentConnection,
    ConnectionLostError,
    MalformedError,
    connect,
)
from trainer_agent.link.framing import FramingError, frame
from trainer_agent.link.outbox import Keep, Outbox
from trainer_agent.link.protocol import (
    FINAL_REASONS,
    LINK_VERSION_UNSUPPORTED,
    PROTOCOL_VERSION,
    SOCKET_DIRECTORY_UNUSABLE,
)
from trainer_agent.link.spawn import AgentSpawner
from trainer_agent.link.status import LinkState, LinkStatus

_logger = logging.getLogger(__name__)

DEFAULT_BUFFER_BYTES: Final = 1024 * 1024
"""Room for messages while no agent takes them: some 10,000 steps."""

# An agent that was started beside another one ends: it is collected at some later step.
_POLLS_PER_COLLECTION: Final = 256
# A look takes half a microsecond, a thousandth of the shortest step that is not spared it. An
# update waits for the next look, which at steps of a millisecond is the next step.
_LOOK_INTERVAL: Final = 0.0005
_CONNECT_INTERVAL: Final = 0.05
_FAILURE_BACKOFF_LAST: Final = 30.0
_DETACHED_RETRY: Final = 60.0
_PROVEN_AFTER: Final = 10.0
_MOST_LOGGED: Final = 16  # troubles; some name what differs each time
_NEVER: Final = math.inf

_NOTHING: Final[tuple[link_pb2.AgentMessage, ...]] = ()


class TrainerLink:
    """Connects a training process with its agent, and starts an agent where there is none.

    ``send`` and ``poll`` return at once and raise nothing: whatever fails shows in ``status``, and
    once until an agent answers in the log. All waiting, reconnecting and starting of agents is done
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
        self._connection: AgentConnection | None = None
        self._outbox = Outbox(buffer_bytes)
        self._waiting = False  # there is something to send, perhaps the hello
        self._inbox: list[link_pb2.AgentMessage] = []

        self._state = LinkState.IDLE
        self._welcome: link_pb2.AgentWelcome | None = None
        self._detached: link_pb2.Detached | None = None
        self._trouble = ""
        self._logged: set[str] = set()
        self._connections = 0
        self._unsendable = 0
        self._failures = 0
        self._polls = 0
        self._connected_at = 0.0
        self._attempt_at = 0.0
        self._look_at = 0.0
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
            buffered_bytes=self._outbox.size_bytes,
            connections=self._connections,
        )

    # ------------------------------------------------------------------------- for each training

    def start(self) -> None:
        """Connects to the agent if one listens, else starts one and lets ``poll`` do the rest."""
        if self._state is not LinkState.IDLE:
            return
        self._state = LinkState.CONNECTING
        try:
            self._address = locate(self._job_id, self._socket_dir)
            prepare_directory(self._address.directory)
        except LinkAddressError as error:
            detached = link_pb2.Detached(reason=SOCKET_DIRECTORY_UNUSABLE, message=str(error))
            self._detach(detached, final=True)
            self._inbox.append(link_pb2.AgentMessage(detached=detached))
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
            _logger.info("job %s: the agent's log is %s", self._job_id, self._address.log)
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
                self._wait(left)
        return True

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
        while not self._over() and not self._all_taken():
            left = deadline - time.monotonic()
            if left <= 0 or (self._detached is not None and self._connection is None):
                break
            self.poll()
            if not self._all_taken():
                self._wait(left)
        taken = self._all_taken()
        self._end()
        return taken

    # ------------------------------------------------------------------------------ for each step

    def send(self, message: link_pb2.TrainerMessage) -> None:
        """Sends a message, or keeps it until an agent takes it.

        When the buffer is full, step reports are dropped, from the middle, and counted; nothing
        else is. Before ``start`` messages are kept; after ``close`` they are ignored.
        """
        connection = self._connection
        if connection is None and self._over():
            return
        try:
            data = frame(message.SerializeToString())
        except (EncodeError, FramingError) as error:
            self._unsendable += 1
            self._note(f"a message could not be sent: {error}")
            return
        sent = 0
        if connection is not None and not self._waiting:
            try:
                sent = connection.send(data)
            except ConnectionLostError as error:
                self._lose(error)
            if sent == len(data):
                return  # all that an ordinary step does here
        keep, steps = _worth(message)
        self._outbox.append(data, keep=keep, steps=steps, sent=sent)
        self._waiting = True
        if not sent:
            self._flush()

    def poll(self) -> Sequence[link_pb2.AgentMessage]:
        """Returns what has come in from the agent, oldest first: no welcome, but all else.

        Also sends what waits, and connects or starts an agent where that is due. Deliveries may
        come again after a reconnection; the receiver tells duplicates by their revision.
        """
        if self._connection is not None and not self._waiting and not self._inbox:
            now = time.monotonic()
            if now < self._look_at:
                return _NOTHING  # all that most steps do here, where they are short
            self._look_at = now + _LOOK_INTERVAL
            self._polls += 1
            if not self._polls % _POLLS_PER_COLLECTION and self._spawner is not None:
                self._spawner.running()
            try:
                received = self._connection.receive()
            except ConnectionLostError as error:
                self._lose(error)
                return _NOTHING
            if not received:
                return _NOTHING  # all that other steps do here
            self._handle_all(received)
        elif self._state is not LinkState.IDLE and not self._over():
            self._maintain()
        if not self._inbox:
            return _NOTHING
        messages, self._inbox = self._inbox, []
        return messages

    def wait(self, seconds: float) -> None:
        """Waits, without work, until ``poll`` has something to do or so long; while paused.

        Args:
            seconds: Longest wait.
        """
        if not self._inbox:
            self._wait(seconds)

    # ---------------------------------------------------------------------------- connecting

    def _maintain(self) -> None:
        """Does whatever is due: connect, send what waits, receive."""
        if self._connection is None and time.monotonic() >= self._attempt_at:
            self._connect()
        self._flush()
        self._receive()

    def _connect(self) -> None:
        assert self._address is not None
        self._attempt_at = time.monotonic() + _CONNECT_INTERVAL
        connection: socket.socket | None
        try:
            connection = connect(self._address.socket)
        except (FileNotFoundError, ConnectionRefusedError):
            connection = self._spawn_agent()
        except OSError as error:
            self._failed(f"no connection to the agent: {error.strerror or error}")
            return
        if connection is None:
            return
        try:
            self._connection = AgentConnection(connection, self._hello())
        except Exception as error:  # noqa: BLE001 - the caller's hello; it must not harm a step
            connection.close()
            self._failed(f"no hello to the agent: {type(error).__name__}: {error}")
            return
        self._outbox.begin_stream()
        self._waiting = True
        self._connected_at = time.monotonic()

    def _hello(self) -> bytes:
        hello = link_pb2.TrainerHello()
        hello.CopyFrom(self._make_hello())
        hello.protocol_version = PROTOCOL_VERSION
        hello.job_id = self._job_id
        hello.pid = os.getpid()
        hello.control_plane = hello.control_plane or self._control_plane
        return frame(link_pb2.TrainerMessage(hello=hello).SerializeToString())

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

    def _answered(self) -> bool:
        return self._state is LinkState.CONNECTED

    def _all_taken(self) -> bool:
        # A process that was just started may yet die without having read what the socket holds.
        return self._welcome is not None and not self._waiting

    def _over(self) -> bool:
        return self._state is LinkState.CLOSED or self._attempt_at == _NEVER

    def _wait(self, seconds: float) -> None:
        """Waits until the connection has news, until it is time for one, or so long."""
        if self._connection is not None:
            self._connection.wait(seconds, to_send=self._waiting)
            self._look_at = 0.0
        elif self._state is LinkState.IDLE or self._over():
            time.sleep(seconds)
        else:
            time.sleep(min(seconds, max(self._attempt_at - time.monotonic(), 0.0)))

    def _failed(self, trouble: str) -> None:
        """Notes a failure that trying again at once will hardly mend."""
        self._note(trouble)
        self._failures += 1
        delay = min(_CONNECT_INTERVAL * 2.0 ** min(self._failures, 32), _FAILURE_BACKOFF_LAST)
        self._attempt_at = max(self._attempt_at, time.monotonic() + delay)

    def _lose(self, error: ConnectionLostError) -> None:
        """Gives up the connection; ``poll`` makes another one."""
        had_answered = self._welcome is not None and not isinstance(error, MalformedError)
        if self._spawner is not None and time.monotonic() - self._connected_at > _PROVEN_AFTER:
            self._spawner.proven()
        self._disconnect()
        if self._state is LinkState.DETACHED:
            self._attempt_at = max(self._attempt_at, time.monotonic() + _DETACHED_RETRY)
            return
        self._state = LinkState.CONNECTING
        if had_answered:
            self._note(str(error))
        else:
            self._failed(str(error))

    def _disconnect(self) -> None:
        if self._connection is not None:
            self._connection.close()
        self._connection = None
        self._welcome = None
        self._waiting = bool(self._outbox)

    def _note(self, trouble: str) -> None:
        if trouble not in self._logged and len(self._logged) < _MOST_LOGGED:
            self._logged.add(trouble)
            _logger.warning("job %s: %s; training goes on", self._job_id, trouble)
        self._trouble = trouble

    def _end(self) -> None:
        self._disconnect()
        self._state = LinkState.CLOSED
        if self._spawner is not None:
            self._spawner.leave()

    # ------------------------------------------------------------------- sending and receiving

    def _flush(self) -> None:
        if self._connection is None or not self._waiting:
            return
        try:
            self._waiting = not self._connection.flush(self._outbox)
        except ConnectionLostError as error:
            self._receive()  # what the agent said last may tell why
            if self._connection is not None:
                self._lose(error)

    def _receive(self) -> None:
        if self._connection is None:
            return
        try:
            self._handle_all(self._connection.receive())
        except ConnectionLostError as error:
            self._lose(error)

    def _handle_all(self, messages: Sequence[link_pb2.AgentMessage]) -> None:
        for message in messages:
            match message.WhichOneof("message"):
                case None:
                    continue  # from a newer agent
                case "welcome":
                    self._welcomed(message.welcome)
                    continue
                case "detached":
                    final = message.detached.reason in FINAL_REASONS
                    self._detach(message.detached, final=final)
                case _:
                    pass
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
        self._logged.clear()
        self._connections += 1
        self._failures = 0

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
            self._disconnect()
            self._attempt_at = _NEVER

    def _forget_after_fork(self) -> None:
        self._disconnect()  # closes this process's descriptor; the parent's stays open
        self._state = LinkState.CLOSED
        if self._spawner is not None:
            self._spawner.forget_after_fork()


def _worth(message: link_pb2.TrainerMessage) -> tuple[Keep, int]:
    """Returns how long a message is worth keeping, and how many steps it reports."""
    match message.WhichOneof("message"):
        case "step":
            return Keep.IF_ROOM, 1
        case "steps":
            return Keep.IF_ROOM, len(message.steps.steps)
        case "state" | "outcome":
            return Keep.UNTIL_HELLO, 0
        case _:
            return Keep.ALWAYS, 0


_links: weakref.WeakSet[TrainerLink] = weakref.WeakSet()


def _forget_links_after_fork() -> None:
    for link in _links:
        link._forget_after_fork()  # noqa: SLF001 - of this very module


os.register_at_fork(after_in_child=_forget_links_after_fork)
