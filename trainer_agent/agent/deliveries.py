"""Updates on their way from the control plane to the trainer."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from midcourse.agent.v1 import session_pb2
from midcourse.link.v1 import link_pb2
from trainer_agent.link.framing import MAX_MESSAGE_BYTES

MALFORMED_DELIVERY = "MALFORMED_DELIVERY"
"""Reason for refusing a delivery that does not say which update it is, or is too large."""

MAX_UPDATE_BYTES: Final = MAX_MESSAGE_BYTES - 64
"""Largest update that is passed on: with what goes around it, it still fits the local wire."""

_LAST_MOMENT: Final = 2**63 - 1


@dataclass(slots=True)
class _Held:
    message: link_pb2.LinkDelivery
    passed: bool = False
    nonces: list[int] = field(default_factory=list)  # of this stream, to be answered when passed


class Deliveries:
    """Holds each update until the trainer says how it ended.

    Every connection of the trainer gets each update once, in the order in which they came. Every
    nonce of a stream gets one reply: "received" once the trainer has been given the update.
    """

    def __init__(self) -> None:
        """Holds nothing."""
        self._held: dict[int, _Held] = {}
        self._withdrawals: dict[int, bool] = {}  # revision: passed on over this connection

    def held(self) -> list[int]:
        """Returns the revisions of all updates that are not known to be settled."""
        return list(self._held)

    def deliver(self, delivery: session_pb2.Delivery, now_nanos: int) -> bool:
        """Takes a delivery.

        Args:
            delivery: What the control plane said.
            now_nanos: The monotonic clock.

        Returns:
            Whether it can be taken; if not, it must be refused.
        """
        update = delivery.update
        if update.revision == 0 or not update.HasField("spec"):
            return False
        if update.ByteSize() > MAX_UPDATE_BYTES:
            return False
        held = self._held.get(update.revision)
        if held is None:
            message = link_pb2.LinkDelivery(update=update)
            if delivery.HasField("time_left"):
                deadline = now_nanos + delivery.time_left.ToNanoseconds()
                if deadline <= _LAST_MOMENT:  # a later one is never reached
                    message.deadline_monotonic_nanos = max(deadline, 0)
            held = self._held[update.revision] = _Held(message)
        held.nonces.append(delivery.nonce)
        return True

    def withdraw(self, revision: int) -> None:
        """Takes a withdrawal."""
        self._withdrawals[revision] = False

    def settled(self, revision: int) -> list[int]:
        """Notes that the trainer has said how an update ended.

        Returns:
            Nonces that wait for a reply.
        """
        self._withdrawals.pop(revision, None)
        held = self._held.pop(revision, None)
        return [] if held is None else held.nonces

    def pass_on(self) -> tuple[list[link_pb2.AgentMessage], list[session_pb2.DeliveryReply]]:
        """Returns what to give to the trainer now, and the replies that are due once it is given.

        To be called whenever something came in and the trainer is connected.
        """
        messages: list[link_pb2.AgentMessage] = []
        replies: list[session_pb2.DeliveryReply] = []
        for revision, held in self._held.items():
            if not held.passed:
                held.passed = True
                messages.append(link_pb2.AgentMessage(delivery=held.message))
            replies.extend(
                session_pb2.DeliveryReply(
                    nonce=nonce, revision=revision, received=session_pb2.DeliveryReceived()
                )
                for nonce in held.nonces
            )
            held.nonces.clear()
        for revision, passed in self._withdrawals.items():
            if not passed:
                self._withdrawals[revision] = True
                messages.append(
                    link_pb2.AgentMessage(withdrawal=session_pb2.Withdrawal(revision=revision))
                )
        return messages, replies

    def begin_stream(self) -> None:
        """Notes that a new stream begins: the nonces of the old one are void."""
        for held in self._held.values():
            held.nonces.clear()

    def begin_connection(self) -> None:
        """Notes that the trainer has connected anew: it may have missed all that it was given."""
        self._held = dict(sorted(self._held.items()))
        for held in self._held.values():
            held.passed = False
        for revision in self._withdrawals:
            self._withdrawals[revision] = False
