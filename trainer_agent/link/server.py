"""The agent's end of the link; asyncio. Only the agent process imports it."""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
import socket
from typing import Final, Protocol

from google.protobuf.message import DecodeError

from midcourse.link.v1 import link_pb2
from trainer_agent.link.address import LinkAddress, prepare_directory
from trainer_agent.link.framing import FrameDecoder, FramingError, frame
from trainer_agent.link.peer import (
    open_peer_pidfd,
    require_own_user,
)

_logger = logging.getLogger(__name__)

_BACKLOG: Final = 16
_UNREAD_LIMIT_BYTES: Final = 32 * 1024 * 1024
_RECEIVE_BYTES: Final = 256 * 1024
_RECEIVES_AT_ONCE: Final = 16  # so that other work gets its turn
_LOOK_INTERVAL: Final = 0.1
_SEND_FLAGS: Final = getattr(socket, "MSG_NOSIGNAL", 0)

ATTENTION_SECONDS: Final = 2.0
"""How long a connection stays attentive unless it is asked again."""


class AlreadyServedError(Exception):
    """Another agent listens for the same job in the same directory."""


class LinkHandler(Protocol):
    """Takes what comes in from trainers; called on the event loop."""

    def trainer_said(self, connection: TrainerConnection, message: link_pb2.TrainerMessage) -> None:
        """Takes a message."""

    def trainer_lost(self, connection: TrainerConnection) -> None:
        """Notes that a connection has ended."""


class TrainerConnection:
    """A connection from a process of our own user.

    It is not waited on all the time. To wake a process costs the one that sends some 50 to 100 µs,
    and a trainer sends at every step. So, unless it is attentive, the agent looks at intervals for
    what has come in, and a step costs its trainer a copy into the socket's buffer.

    Attributes:
        peer: Who connected.
    """

    def __init__(self, connection: socket.socket, handler: LinkHandler) -> None:
        """Takes over a connected socket, whose messages go to ``handler``; begins attentive.

        Raises:
            PeerRefusedError: The other end belongs to another user; the socket is closed.
            OSError: The kernel did not say who is there; likewise.
        """
        try:
            connection.setblocking(False)
            self.peer = require_own_user(connection)
        except OSError:
            connection.close()
            raise
        self._socket: socket.socket | None = connection
        self._handler = handler
        self._loop = asyncio.get_running_loop()
        self._decoder = FrameDecoder()
        self._unsent = bytearray()
        self._closing = False
        self._attentive_until = 0.0
        self._look: asyncio.TimerHandle | None = None
        self._pidfd = open_peer_pidfd(connection, self.peer)
        self.attend()

    @property
    def is_open(self) -> bool:
        """Tells whether messages can be sent."""
        return self._socket is not None and not self._closing

    def take_pidfd(self) -> int | None:
        """Hands over the descriptor of the trainer's process, once; None: there is none."""
        pidfd, self._pidfd = self._pidfd, None
        return pidfd

    def attend(self, seconds: float = ATTENTION_SECONDS) -> None:
        """Takes what comes in without delay for a while, as something is expected."""
        if self._socket is None:
            return
        was_attentive = self._attentive_until > 0
        self._attentive_until = self._loop.time() + seconds
        if not was_attentive:
            self._loop.add_reader(self._socket, self._readable)
        if self._look is None:
            self._look = self._loop.call_later(_LOOK_INTERVAL, self._look_in)

    def send(self, message: link_pb2.AgentMessage) -> None:
        """Sends a message; does nothing where the connection has ended.

        A trainer reads at its step boundaries only, so messages may wait for long.

        Raises:
            FramingError: The message is too large.
        """
        if not self.is_open:
            return
        self._unsent += frame(message.SerializeToString())
        if len(self._unsent) > _UNREAD_LIMIT_BYTES:
            _logger.warning("the trainer reads nothing: closing its connection")
            self._lost()
            return
        self._write()

    def close(self) -> None:
        """Closes the connection when what was sent has gone out."""
        self._closing = True
        if not self._unsent:
            self._lost()

    def _look_in(self) -> None:
        self._look = self._loop.call_later(_LOOK_INTERVAL, self._look_in)
        if self._attentive_until > 0:
            if self._loop.time() < self._attentive_until or self._socket is None:
                return
            self._attentive_until = 0.0
            self._loop.remove_reader(self._socket)
        self._readable()

    def _readable(self) -> None:
        for _ in range(_RECEIVES_AT_ONCE):
            if self._socket is None:
                return
            try:
                data = self._socket.recv(_RECEIVE_BYTES)
            except (BlockingIOError, InterruptedError):
                return
            except OSError as error:
                _logger.info("the connection to the trainer broke: %s", error)
                data = b""
            if not data:
                self._lost()
                return
            self._take(data)

    def _take(self, data: bytes) -> None:
        try:
            messages = [
                link_pb2.TrainerMessage.FromString(payload) for payload in self._decoder.feed(data)
            ]
        except (FramingError, DecodeError) as error:
            _logger.warning("the trainer sent something that can not be read: %s", error)
            self._lost()
            return
        for message in messages:
            if self.is_open:
                self._handler.trainer_said(self, message)

    def _write(self) -> None:
        assert self._socket is not None
        try:
            while self._unsent:
                del self._unsent[: self._socket.send(self._unsent, _SEND_FLAGS)]
        except (BlockingIOError, InterruptedError):
            self._loop.add_writer(self._socket, self._write)
            return
        except OSError:
            # What the trainer said last is still to be read; that ends the connection too.
            self._unsent.clear()
            self.attend()
        self._loop.remove_writer(self._socket)
        if self._closing:
            self._lost()

    def _lost(self) -> None:
        """Ends the connection at once and tells the handler."""
        if self._pidfd is not None:
            os.close(self._pidfd)
            self._pidfd = None
        if self._look is not None:
            self._look.cancel()
            self._look = None
        if self._socket is not None:
            self._loop.remove_reader(self._socket)
            self._loop.remove_writer(self._socket)
            self._socket.close()
            self._socket = None
            self._handler.trainer_lost(self)


class LinkServer:
    """Listens for the trainer of a job; a lock on a file makes it the only one."""

    def __init__(self, address: LinkAddress, handler: LinkHandler) -> None:
        """Prepares to listen at ``address`` and to hand what comes in to ``handler``."""
        self._address = address
        self._handler = handler
        self._lock: int | None = None
        self._listener: socket.socket | None = None

    def start(self) -> None:
        """Begins to listen; the event loop must run.

        Raises:
            AlreadyServedError: Another agent does.
            LinkAddressError: The socket directory can not be used.
            OSError: The socket can not be made.
        """
        prepare_directory(self._address.directory)
        self._lock = _lock(self._address)
        # Left by an agent that was killed: the lock says that nobody listens on it.
        self._address.socket.unlink(missing_ok=True)
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._listener.setblocking(False)
            self._listener.bind(str(self._address.socket))
            self._listener.listen(_BACKLOG)
        except OSError:
            self.stop_listening()
            raise
        asyncio.get_running_loop().add_reader(self._listener, self._accept)

    def adopt(self, descriptor: int) -> TrainerConnection:
        """Takes over a connection that the trainer made before it started this process.

        Raises:
            OSError: The descriptor is not that of a connected socket of our own user.
        """
        connection = socket.socket(fileno=descriptor)
        connection.set_inheritable(False)
        return TrainerConnection(connection, self._handler)

    def stop_listening(self) -> None:
        """Leaves the address to another agent; connections stay open. May be called again."""
        if self._lock is None:
            return
        # In this order: whoever gets the lock next finds the files gone, or makes its own.
        self._address.socket.unlink(missing_ok=True)
        if self._listener is not None:
            asyncio.get_running_loop().remove_reader(self._listener)
            self._listener.close()
            self._listener = None
        self._address.lock.unlink(missing_ok=True)
        os.close(self._lock)
        self._lock = None

    def _accept(self) -> None:
        if self._listener is None:
            return
        try:
            connection, _ = self._listener.accept()
            TrainerConnection(connection, self._handler)
        except (BlockingIOError, ConnectionAbortedError):
            return  # whoever it was is gone again
        except OSError as error:
            _logger.warning("a connection was not taken: %s", error)


def _lock(address: LinkAddress) -> int:
    """Locks the job's file and returns its descriptor.

    Raises:
        AlreadyServedError: Another agent has it.
    """
    while True:
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = os.open(address.lock, flags, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # The holder before may have removed the file between our open and our lock.
            if os.path.samestat(os.fstat(descriptor), address.lock.stat()):
                return descriptor
        except BlockingIOError:
            os.close(descriptor)
            raise AlreadyServedError(
                f"another agent serves this job in {address.directory}"
            ) from None
        except FileNotFoundError:
            pass
        os.close(descriptor)
