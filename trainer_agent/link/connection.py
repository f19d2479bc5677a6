"""One connection from a trainer to an agent; nothing here blocks."""

from __future__ import annotations

import os
import select
import socket
import sys
from typing import TYPE_CHECKING, Final

from google.protobuf.message import DecodeError

from midcourse.link.v1 import link_pb2
from trainer_agent.link.framing import FrameDecoder, FramingError
from trainer_agent.link.peer import require_own_user

if TYPE_CHECKING:
    from trainer_agent.link.outbox import Outbox

_RECEIVE_BYTES: Final = 64 * 1024
_RECEIVES_AT_ONCE: Final = 64  # so that taking what came in is bounded, however fast it comes
# Without it a SIGPIPE could end the training process. macOS has a socket option instead.
_SEND_FLAGS: Final = getattr(socket, "MSG_NOSIGNAL", 0)
_SO_NOSIGPIPE: Final = 0x1022

_NOTHING: Final[tuple[link_pb2.AgentMessage, ...]] = ()


class ConnectionLostError(Exception):
    """The connection is of no use any more; the message says why."""


class MalformedError(ConnectionLostError):
    """The agent sent what can not be read."""


def connect(path: str | os.PathLike[str]) -> socket.socket:
    """Connects to a listening agent, or fails at once.

    Raises:
        FileNotFoundError: There is no socket.
        ConnectionRefusedError: Nobody listens on it.
        OSError: It did not work for another reason.
    """
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.setblocking(False)
        connection.connect(os.fspath(path))
    except OSError:
        connection.close()
        raise
    return connection


class AgentConnection:
    """Carries frames to an agent, and messages from it."""

    __slots__ = ("_buffer", "_decoder", "_first", "_poller", "_socket", "_view")

    def __init__(self, connection: socket.socket, hello: bytes) -> None:
        """Takes over a connected socket.

        Args:
            connection: The socket; closed if this fails.
            hello: The first frame.

        Raises:
            PeerRefusedError: The other end belongs to another user.
            OSError: The kernel did not say who is there.
        """
        try:
            connection.setblocking(False)
            if sys.platform == "darwin":
                connection.setsockopt(socket.SOL_SOCKET, _SO_NOSIGPIPE, 1)
            require_own_user(connection)
        except OSError:
            connection.close()
            raise
        self._socket = connection
        self._first = memoryview(hello)
        self._decoder = FrameDecoder()
        self._buffer = bytearray(_RECEIVE_BYTES)
        self._view = memoryview(self._buffer)
        self._poller = select.poll()
        self._poller.register(connection, select.POLLIN)

    def send(self, data: bytes | memoryview) -> int:
        """Sends what the socket takes of ``data`` and returns how many bytes that was.

        Raises:
            ConnectionLostError: The other end is gone.
        """
        try:
            return self._socket.send(data, _SEND_FLAGS)
        except (BlockingIOError, InterruptedError):
            return 0
        except OSError as error:
            raise ConnectionLostError(
                f"the connection to the agent broke: {error.strerror or error}"
            ) from error

    def flush(self, outbox: Outbox) -> bool:
        """Sends the hello and then what waits, as far as the socket takes it.

        Returns:
            Whether nothing is left.

        Raises:
            ConnectionLostError: The other end is gone.
        """
        while self._first:
            sent = self.send(self._first)
            if not sent:
                return False
            self._first = self._first[sent:]
        while outbox:
            sent = self.send(outbox.first())
            if not sent:
                return False
            outbox.advance(sent)
        return True

    def receive(self) -> list[link_pb2.AgentMessage] | tuple[link_pb2.AgentMessage, ...]:
        """Returns the messages that are complete.

        Raises:
            ConnectionLostError: The other end is gone, and everything before was returned.
            MalformedError: It sent what can not be read.
        """
        if not self._poller.poll(0):
            return _NOTHING  # all that most looks do; an exception costs twice as much
        try:
            size = self._socket.recv_into(self._buffer)
        except (BlockingIOError, InterruptedError):
            return _NOTHING
        except OSError as error:
            raise ConnectionLostError(
                f"the connection to the agent broke: {error.strerror or error}"
            ) from error
        if size == 0:
            raise ConnectionLostError("the agent closed the connection")
        messages = self._messages(size)
        for _ in range(_RECEIVES_AT_ONCE - 1):
            try:
                size = self._socket.recv_into(self._buffer)
            except OSError:
                break  # nothing more, or a broken connection: the next call says so
            if size == 0:
                break
            messages += self._messages(size)
        return messages

    def wait(self, seconds: float, *, to_send: bool) -> None:
        """Waits until there is something to receive, or room to send if asked, or for so long."""
        poller = select.poll()
        poller.register(self._socket, select.POLLIN | (select.POLLOUT if to_send else 0))
        poller.poll(seconds * 1000)

    def close(self) -> None:
        """Closes this process's end; one that a forked child has too stays open there."""
        self._socket.close()

    def _messages(self, size: int) -> list[link_pb2.AgentMessage]:
        try:
            return [
                link_pb2.AgentMessage.FromString(payload)
                for payload in self._decoder.feed(self._view[:size])
            ]
        except (FramingError, DecodeError) as error:
            raise MalformedError(
                f"the agent sent something that can not be read: {error}"
            ) from error
