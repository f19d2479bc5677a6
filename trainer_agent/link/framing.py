"""Messages on a byte stream: each behind its length in four bytes, big-endian."""

from __future__ import annotations

from typing import Final

MAX_MESSAGE_BYTES: Final = 4 * 1024 * 1024
"""Largest message either end takes or sends."""

HEADER_BYTES: Final = 4
"""Size of the length before each message."""


class FramingError(ValueError):
    """The stream can not be read any further, or a message is too large for it."""


def frame(payload: bytes, *, max_bytes: int = MAX_MESSAGE_BYTES) -> bytes:
    """Returns a message as it goes onto the stream.

    Args:
        payload: The message; may be empty.
        max_bytes: Largest message the other end takes.

    Raises:
        FramingError: The message is larger than that.
    """
    if len(payload) > max_bytes:
        raise FramingError(
            f"a message of {len(payload)} bytes is too large: at most {max_bytes} bytes are allowed"
        )
    return len(payload).to_bytes(HEADER_BYTES, "big") + payload


class FrameDecoder:
    """Cuts a stream, as it comes in, into messages.

    Holds at most one unfinished message. After a :class:`FramingError` the stream's position is
    lost: close it.
    """

    __slots__ = ("_buffer", "_max_bytes")

    def __init__(self, *, max_bytes: int = MAX_MESSAGE_BYTES) -> None:
        """Begins a stream whose messages have at most ``max_bytes`` bytes."""
        self._buffer = bytearray()
        self._max_bytes = max_bytes

    def feed(self, data: bytes | bytearray | memoryview) -> list[bytes]:
        """Takes what came in and returns the messages that are complete now.

        Raises:
            FramingError: The other end announced a message above the limit. What was complete
                before it in ``data`` is lost with it.
        """
        buffer = self._buffer
        buffer += data
        messages: list[bytes] = []
        position = 0
        while len(buffer) - position >= HEADER_BYTES:
            start = position + HEADER_BYTES
            length = int.from_bytes(buffer[position:start], "big")
            if length > self._max_bytes:
                raise FramingError(
                    f"the other end announced a message of {length} bytes: at most "
                    f"{self._max_bytes} bytes are allowed"
                )
            if len(buffer) - start < length:
                break
            position = start + length
            messages.append(bytes(buffer[start:position]))
        if position:
            del buffer[:position]
        return messages
