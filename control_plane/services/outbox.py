"""What a session has to say to its agent, in order; acknowledgements coalesced."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from control_plane.domain.update import Update


@dataclass(frozen=True, slots=True)
class Welcome:
    """Answer to Hello; durations in seconds, `settled` as (first, last) pairs."""

    epoch: int
    heartbeat_interval: float
    stall_after: float
    max_message_bytes: int
    max_samples: int
    server_time: datetime
    settled: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class Delivery:
    """An update to apply; `time_left` in seconds, None: no limit."""

    nonce: int
    update: Update
    time_left: float | None


@dataclass(frozen=True, slots=True)
class Withdrawal:
    """An update not to apply any more."""

    revision: int


@dataclass(frozen=True, slots=True)
class Acknowledgement:
    """Every message up to this number is on disk, or needs not to be."""

    sequence: int


@dataclass(frozen=True, slots=True)
class StateRequest:
    """Something was missed: full state is needed."""

    reason: str


@dataclass(frozen=True, slots=True)
class GoAway:
    """The server is about to go; `delay` in seconds."""

    delay: float
    reason: str


@dataclass(frozen=True, slots=True)
class ItemError:
    """One message of the agent was bad. It had no effect."""

    sequence: int
    reason: str
    message: str


ServerMessage = (
    Welcome | Delivery | Withdrawal | Acknowledgement | StateRequest | GoAway | ItemError
)


MOST_WAITING = 1_000
"""With so many messages waiting to be sent, no more are read that might have to be answered."""


class Outbox:
    """Messages on their way to the one writer of a stream.

    Bounded by what goes in: at most one delivery for each open update, one item error
    for each message read, for which there has to be `room`, one acknowledgement in all.
    """

    __slots__ = ("_acknowledged", "_messages", "_taken", "_waiting")

    def __init__(self) -> None:
        """Begins empty."""
        # Few at any time, and of outboxes there are thousands: an empty deque takes ten times the
        # room of an empty list, and an event has one too.
        self._messages: list[ServerMessage] = []
        self._acknowledged: int | None = None
        self._waiting: asyncio.Future[None] | None = None
        self._taken: asyncio.Event | None = None  # only where somebody had to wait for room

    def __len__(self) -> int:
        """Messages that wait, acknowledgements apart."""
        return len(self._messages)

    def put(self, message: ServerMessage) -> None:
        """Adds a message behind the others."""
        self._messages.append(message)
        self._wake()

    def acknowledge(self, sequence: int) -> None:
        """Has an acknowledgement sent; a newer one takes the place of an older one."""
        self._acknowledged = sequence
        self._wake()

    def _wake(self) -> None:
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(None)

    @property
    def is_full(self) -> bool:
        """Whether too much waits already, as whoever it is for does not read it."""
        return len(self._messages) >= MOST_WAITING

    async def room(self) -> None:
        """Waits while it is full."""
        while self.is_full:
            if self._taken is None:
                self._taken = asyncio.Event()
            self._taken.clear()
            await self._taken.wait()

    async def get(self) -> ServerMessage:
        """The next message; waits for one. To be called by one task."""
        while True:
            if self._messages:
                if self._taken is not None:
                    self._taken.set()
                return self._messages.pop(0)
            if self._acknowledged is not None:
                sequence, self._acknowledged = self._acknowledged, None
                return Acknowledgement(sequence)
            self._waiting = asyncio.get_running_loop().create_future()
            await self._waiting


class AckTracker:
    """Finds the number up to which every message is done with."""

    __slots__ = ("_done", "_open", "done_up_to")

    def __init__(self, first: int) -> None:
        """Begins after the message `first`, which is done with."""
        self.done_up_to = first
        self._open: list[int] = []
        self._done: dict[int, bool] = {}  # whether whoever sent it waits for being told

    def begin(self, sequence: int) -> None:
        """A message has come; numbers only grow."""
        self._open.append(sequence)

    def done(self, sequence: int, *, awaited: bool = True) -> bool:
        """A message is done with; returns whether it is time to say so.

        Args:
            sequence: Its number.
            awaited: Whoever sent it waits for being told; if not, a later message's turn will do.
        """
        waiting = self._open
        if not waiting or waiting[0] != sequence:
            self._done[sequence] = awaited
            return False
        self.done_up_to = waiting.pop(0)
        while waiting and waiting[0] in self._done:
            self.done_up_to = waiting.pop(0)
            awaited |= self._done.pop(self.done_up_to)
        return awaited
