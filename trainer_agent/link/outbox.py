"""Frames that wait for the socket, bounded in bytes."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from enum import Enum, auto

from trainer_agent.link.thinning import thinned_out


class Keep(Enum):
    """How long a frame is worth keeping."""

    IF_ROOM = auto()
    """It may go when there is no room."""
    UNTIL_HELLO = auto()
    """The hello of the next connection tells the same, or newer."""
    ALWAYS = auto()
    """Nothing else tells it."""


@dataclass(slots=True)
class _Entry:
    frame: bytes
    keep: Keep
    steps: int


class Outbox:
    """A queue of frames; when it is full, those kept ``IF_ROOM`` thin out.

    Attributes:
        dropped: Steps whose reports were dropped so far.
    """

    def __init__(self, limit_bytes: int) -> None:
        """Makes an empty queue.

        Args:
            limit_bytes: Size above which frames kept ``IF_ROOM`` go.
        """
        self._entries: deque[_Entry] = deque()
        self._limit = limit_bytes
        self._bytes = 0
        self._sent_of_first = 0
        self.dropped = 0

    def __bool__(self) -> bool:
        """Tells whether anything waits."""
        return bool(self._entries)

    def __len__(self) -> int:
        """Returns how many frames wait."""
        return len(self._entries)

    @property
    def size_bytes(self) -> int:
        """Size of all frames that wait, whole."""
        return self._bytes

    def append(self, frame: bytes, *, keep: Keep, steps: int = 0, sent: int = 0) -> None:
        """Adds a frame, and makes room if the queue is above its limit.

        Args:
            frame: The frame.
            keep: How long it is worth keeping.
            steps: How many steps it reports.
            sent: Bytes of it that are on the stream already; only into an empty queue.
        """
        if sent:
            assert not self._entries
            self._sent_of_first = sent
        self._entries.append(_Entry(frame, keep, steps))
        self._bytes += len(frame)
        if self._bytes > self._limit:
            self._thin()

    def first(self) -> memoryview:
        """Returns what is left to send of the oldest frame; there must be one."""
        return memoryview(self._entries[0].frame)[self._sent_of_first :]

    def advance(self, sent: int) -> None:
        """Notes that so many bytes of :meth:`first` are on the stream."""
        self._sent_of_first += sent
        if self._sent_of_first == len(self._entries[0].frame):
            self._bytes -= self._sent_of_first
            self._sent_of_first = 0
            self._entries.popleft()

    def begin_stream(self) -> None:
        """Notes that a new stream begins, with a hello.

        A frame sent in part will be sent again, whole; what the hello tells is taken out.
        """
        self._sent_of_first = 0
        self._entries = deque(e for e in self._entries if e.keep is not Keep.UNTIL_HELLO)
        self._count()

    def _thin(self) -> None:
        first_is_partly_sent = self._sent_of_first > 0
        going = thinned_out(
            [
                index
                for index, entry in enumerate(self._entries)
                if entry.keep is Keep.IF_ROOM and not (index == 0 and first_is_partly_sent)
            ]
        )
        self.dropped += sum(self._entries[index].steps for index in going)
        self._entries = deque(entry for i, entry in enumerate(self._entries) if i not in going)
        self._count()

    def _count(self) -> None:
        self._bytes = sum(len(entry.frame) for entry in self._entries)
