"""Where the gRPC messages of a plaintext HTTP/2 connection begin and end, as its bytes go by."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_FRAME_HEADER = 9
_DATA = 0
_PADDED = 0x08
_MESSAGE_HEADER = 5
"""Whether it is compressed, and how long it is."""


@dataclass(frozen=True, slots=True)
class Message:
    """One message: places in all that was sent in its direction.

    Attributes:
        number: Counted over the connection, from 1.
        begin: Its first byte; if a frame begins with it, that frame's first byte.
        end: After its last byte.
    """

    number: int
    begin: int
    end: int


@dataclass
class _Stream:
    """What of a message has come so far."""

    header: bytearray = field(default_factory=bytearray)
    begin: int = 0
    missing: int = 0


class MessageCounter:
    """Finds messages in what one end of a connection sends.

    Attributes:
        messages: Those that have begun, and of which it is known how long they are; `end` is as if
            the rest came without another frame's header in between.
    """

    def __init__(self, *, preface: bool) -> None:
        self.messages: list[Message] = []
        self._streams: defaultdict[int, _Stream] = defaultdict(_Stream)
        self._skip = len(_PREFACE) if preface else 0
        self._at = 0
        self._header = bytearray()
        self._frame_begin = 0
        self._data = 0
        self._stream = 0
        self._fresh = False

    def feed(self, data: bytes) -> list[Message]:
        """Takes what comes next; returns the messages of which the beginning is in it."""
        known = len(self.messages)
        at = 0
        while at < len(data):
            if self._skip:
                taken = min(self._skip, len(data) - at)
                self._skip -= taken
            elif self._data:
                taken = self._payload(data, at)
            else:
                taken = self._frame(data, at)
            at += taken
            self._at += taken
        return self.messages[known:]

    def _frame(self, data: bytes, at: int) -> int:
        if not self._header:
            self._frame_begin = self._at
        taken = min(_FRAME_HEADER - len(self._header), len(data) - at)
        self._header += data[at : at + taken]
        if len(self._header) == _FRAME_HEADER:
            length = int.from_bytes(self._header[:3])
            kind, flags = self._header[3], self._header[4]
            if kind == _DATA:
                if flags & _PADDED:
                    raise ValueError("gRPC pads nothing, and this frame is padded")
                self._data, self._fresh = length, True
                self._stream = int.from_bytes(self._header[5:]) & 0x7FFF_FFFF
            else:
                self._skip = length
            self._header.clear()
        return taken

    def _payload(self, data: bytes, at: int) -> int:
        stream = self._streams[self._stream]
        room = min(self._data, len(data) - at)
        if stream.missing:
            taken = min(stream.missing, room)
            stream.missing -= taken
        else:
            if not stream.header:
                stream.begin = self._frame_begin if self._fresh else self._at
            taken = min(_MESSAGE_HEADER - len(stream.header), room)
            stream.header += data[at : at + taken]
            if len(stream.header) == _MESSAGE_HEADER:
                stream.missing = int.from_bytes(stream.header[1:])
                end = self._at + taken + stream.missing
                self.messages.append(Message(len(self.messages) + 1, stream.begin, end))
                stream.header.clear()
        self._fresh = False
        self._data -= taken
        return taken
