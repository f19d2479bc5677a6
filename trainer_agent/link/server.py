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
    PeerCredentials,
    PeerRefusedError,
    open_peer_pidfd,
    require_own_user,
)

_logger = logging.getLogger(__name__)

_BACKLOG: Final = 16
_UNREAD_LIMIT_BYTES: Final = 32 * 1024 * 1024


class AlreadyServedError(Exception):
    """Another agent listens for the same job in the same directory."""


class LinkHandler(Protocol):
    """Takes what comes in from trainers; called on the event loop."""

    def trainer_said(self, connection: TrainerConnection, message: link_pb2.TrainerMessage) -> None:
        """Takes a message."""

    def trainer_lost(self, connection: TrainerConnection) -> None:
        """Notes that a connection has ended."""


class TrainerConnection(asyncio.Protocol):
    """A connection from a process of our own user; any other is closed at once.

    Attributes:
        peer: Who connected; None until the connection is made.
    """

    def __init__(self, handler: LinkHandler) -> None:
        """Makes a connection whose messages go to ``handler``."""
        self.peer: PeerCredentials | None = None
        self._handler = handler
        self._decoder = FrameDecoder()
        self._transport: asyncio.Transport | None = None
        self._pidfd: int | None = None

    @property
    def is_open(self) -> bool:
        """Tells whether messages can be sent."""
        return self._transport is not None and not self._transport.is_closing()

    def take_pidfd(self) -> int | None:
        """Hands over the descriptor of the trainer's process, once; None: there is none."""
        pidfd, self._pidfd = self._pidfd, None
        return pidfd

    def send(self, message: link_pb2.AgentMessage) -> None:
        """Sends a message; does nothing where the connection has ended.

        A trainer reads at its step boundaries only, so messages may wait for long.

        Raises:
            FramingError: The message is too large.
        """
        transport = self._transport
        if transport is None or transport.is_closing():
            return
        transport.write(frame(message.SerializeToString()))
        if transport.get_write_buffer_size() > _UNREAD_LIMIT_BYTES:
            _logger.warning("the trainer reads nothing: closing its connection")
            transport.abort()

    def close(self) -> None:
        """Closes the connection when what was sent has gone out."""
        if self._transport is not None:
            self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Checks who connected."""
        assert isinstance(transport, asyncio.Transport)
        connection: socket.socket = transport.get_extra_info("socket")
        try:
            self.peer = require_own_user(connection)
        except (PeerRefusedError, OSError) as error:
            _logger.warning("connection refused: %s", error)
            transport.abort()
            return
        self._pidfd = open_peer_pidfd(connection, self.peer)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """Cuts what came in into messages."""
        if self._transport is None:
            return
        try:
            messages = [
                link_pb2.TrainerMessage.FromString(payload) for payload in self._decoder.feed(data)
            ]
        except (FramingError, DecodeError) as error:
            _logger.warning("the trainer sent something that can not be read: %s", error)
            self._transport.abort()
            return
        for message in messages:
            self._handler.trainer_said(self, message)

    def connection_lost(self, exc: Exception | None) -> None:
        """Tells the handler, unless the connection was never let in."""
        if self._pidfd is not None:
            os.close(self._pidfd)
            self._pidfd = None
        if self._transport is not None:
            self._transport = None
            self._handler.trainer_lost(self)


class LinkServer:
    """Listens for the trainer of a job; a lock on a file makes it the only one."""

    def __init__(self, address: LinkAddress, handler: LinkHandler) -> None:
        """Prepares to listen at ``address`` and to hand what comes in to ``handler``."""
        self._address = address
        self._handler = handler
        self._lock: int | None = None
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        """Begins to listen.

        Raises:
            AlreadyServedError: Another agent does.
            LinkAddressError: The socket directory can not be used.
            OSError: The socket can not be made.
        """
        prepare_directory(self._address.directory)
        self._lock = _lock(self._address)
        # Left by an agent that was killed: the lock says that nobody listens on it.
        self._address.socket.unlink(missing_ok=True)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            listener.setblocking(False)
            listener.bind(str(self._address.socket))
            self._server = await asyncio.get_running_loop().create_unix_server(
                self._connection, sock=listener, backlog=_BACKLOG
            )
        except OSError:
            listener.close()
            self.stop_listening()
            raise

    async def adopt(self, descriptor: int) -> TrainerConnection:
        """Takes over a connection that the trainer made before it started this process.

        Raises:
            OSError: The descriptor is not that of a connected socket.
        """
        connection = socket.socket(fileno=descriptor)
        connection.set_inheritable(False)
        connection.setblocking(False)
        _, protocol = await asyncio.get_running_loop().connect_accepted_socket(
            self._connection, connection
        )
        return protocol

    def stop_listening(self) -> None:
        """Leaves the address to another agent; connections stay open. May be called again."""
        if self._lock is None:
            return
        # In this order: whoever gets the lock next finds the files gone, or makes its own.
        self._address.socket.unlink(missing_ok=True)
        if self._server is not None:
            self._server.close()
            self._server = None
        self._address.lock.unlink(missing_ok=True)
        os.close(self._lock)
        self._lock = None

    def _connection(self) -> TrainerConnection:
        return TrainerConnection(self._handler)


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
