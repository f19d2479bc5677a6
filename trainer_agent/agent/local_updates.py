"""What the training process has changed by itself, on its way to getting a revision."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from typing import Final

from midcourse.agent.v1 import session_pb2
from trainer_agent.agent.unacknowledged import Unacknowledged

MOST: Final = 100
"""Local updates kept at most; more than that at once are a guard gone wild."""

_DELIVERED_REMEMBERED: Final = 1_000


class LocalUpdates:
    """Keeps each until the control plane delivers an update with its request id.

    It is sent once a stream: in the hello or, if it comes later, in a message of its own.
    """

    def __init__(self) -> None:
        """Keeps nothing."""
        self._kept: dict[str, session_pb2.LocalUpdate] = {}
        self._unsent: Unacknowledged[str, session_pb2.LocalUpdate] = Unacknowledged()
        self._alone: dict[int, str] = {}  # by the number of the message of its own
        self._put_off: list[str] = []
        self._delivered: OrderedDict[str, None] = OrderedDict()
        self._left_out: set[str] = set()

    @property
    def owed(self) -> int:
        """How many the control plane may not have on disk."""
        return len(self._unsent) + len(self._put_off)

    @property
    def left_out(self) -> int:
        """How many were dropped for lack of room, or as the control plane can not take them."""
        return len(self._left_out)

    def take(self, local: session_pb2.LocalUpdate) -> bool:
        """Takes one; returns whether it is news."""
        request_id = local.request_id
        if request_id in self._kept or request_id in self._delivered:
            return False
        if request_id in self._left_out:
            return False
        if not request_id or len(self._kept) >= MOST:
            if len(self._left_out) < _DELIVERED_REMEMBERED:
                self._left_out.add(request_id)
            return False
        kept = session_pb2.LocalUpdate()
        kept.CopyFrom(local)
        self._kept[request_id] = kept
        self._unsent.owe(request_id, kept)
        return True

    def delivered(self, request_id: str) -> None:
        """Notes that the control plane has given one a revision."""
        if self._kept.pop(request_id, None) is not None:
            self._unsent.forget([request_id])
            self._delivered[request_id] = None
            if len(self._delivered) > _DELIVERED_REMEMBERED:
                self._delivered.popitem(last=False)

    def begin_stream(self) -> None:
        """Notes that a new stream begins; its hello carries :meth:`all`."""
        self._alone.clear()
        self._put_off.clear()
        self._unsent.begin_stream()

    def all(self, sequence: int) -> Iterable[session_pb2.LocalUpdate]:
        """Returns all that have no revision; the message of this number carries them."""
        self._unsent.all_sent(sequence)
        return self._kept.values()

    def next(self, sequence: int) -> session_pb2.LocalUpdate | None:
        """Returns the oldest that has not gone out, which now does; None: all have."""
        entry = self._unsent.next_unsent()
        if entry is None:
            return None
        self._unsent.sent(entry[0], sequence)
        self._alone[sequence] = entry[0]
        return entry[1]

    def refused(self, sequence: int, *, for_now: bool) -> None:
        """Notes that the message of this number was refused, for now or for good."""
        request_id = self._alone.pop(sequence, None)
        if request_id not in self._kept:
            return
        self._unsent.forget([request_id])
        if for_now:
            self._put_off.append(request_id)
        else:
            self._kept.pop(request_id)
            self._left_out.add(request_id)

    def try_again(self) -> None:
        """Sends once more what was refused for the time being."""
        for request_id in self._put_off:
            if request_id in self._kept:
                self._unsent.owe(request_id, self._kept[request_id])
        self._put_off.clear()

    def acknowledged(self, sequence: int) -> None:
        """Notes that messages up to this number are on disk, or were refused."""
        self._unsent.acknowledged(sequence)
        for number in [number for number in self._alone if number <= sequence]:
            del self._alone[number]
