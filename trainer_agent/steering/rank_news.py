"""What one rank has to tell all: what the agent said, what is overdue, what it was asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

from midcourse.control.v1 import update_pb2
from midcourse.link.v1 import link_pb2
from trainer_agent.ranks import Apart, Ranks

if TYPE_CHECKING:
    from trainer_agent.ranks import Messages
    from trainer_agent.steering.controller import ParameterController


class RankNews:
    """What this rank has learned and the others do not know yet.

    Args:
        controller: Knows which updates have a deadline.
        monotonic_clock: Nanoseconds; the clock of deadlines.

    Attributes:
        learned: Messages that wait to be told; added to from outside.
        stop_wanted: The run is to end; set from outside, also by a signal handler.
    """

    def __init__(self, controller: ParameterController, monotonic_clock: Callable[[], int]) -> None:
        self._controller = controller
        self._clock = monotonic_clock
        self.learned: list[link_pb2.RankMessage] = []
        self.stop_wanted = False

    def __bool__(self) -> bool:
        """Whether there may be something to tell, besides what has just come in."""
        return bool(self.learned) or self.stop_wanted or self._controller.has_deadlines

    def take(self, received: Sequence[link_pb2.AgentMessage], ranks: Ranks) -> Messages:
        """Return what this rank has learned since it was last asked.

        Args:
            received: What has just come in from the agent, which goes with it.
            ranks: This rank and the others.
        """
        learned, self.learned = self.learned, []
        if self.stop_wanted:
            self.stop_wanted = False
            if not isinstance(ranks, Apart):
                learned.append(link_pb2.RankMessage(stop=True))
        learned.extend(from_agent(received))
        if ranks.rank == 0:
            now = self._clock()
            learned.extend(
                link_pb2.RankMessage(deadline_passed=link_pb2.DeadlinePassed(revision=revision))
                for revision in (*self._controller.overdue(now), *_overdue_already(received, now))
            )
        return learned


def from_agent(messages: Iterable[link_pb2.AgentMessage]) -> list[link_pb2.RankMessage]:
    """Return what the agent said as one rank tells it to all."""
    return [link_pb2.RankMessage(agent=message) for message in messages]


def _overdue_already(messages: Iterable[link_pb2.AgentMessage], now: int) -> list[int]:
    """Return the updates whose deadline passed on the way here, in a step that took its time."""
    return [
        each.delivery.update.revision
        for each in messages
        if each.delivery.HasField("deadline_monotonic_nanos")
        and each.delivery.deadline_monotonic_nanos <= now
        and each.delivery.update.state != update_pb2.UPDATE_STATE_APPLIED
    ]
