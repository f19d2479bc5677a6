"""What the ranks of a run agree on, so that all of them do the same at the same boundary.

Every rank has a controller and a session; the first one has the link to the agent. Whatever a rank
learns that the others must act on (an update has come, its deadline has passed, a loss is not
finite) goes through :meth:`Ranks.exchange`, and is acted on only once it comes back from there. So
all decide from the same messages, at the same boundary, and none ever looks at its own clock.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from midcourse.link.v1 import link_pb2
from trainer_agent.parameters import Refused

Messages = Sequence[link_pb2.RankMessage]


@dataclass(frozen=True, slots=True)
class Problem:
    """Why a rank could not do what all were to do."""

    reason: str
    """UPPER_SNAKE_CASE."""
    message: str
    """What happened, in words."""
    parameter: str = ""
    """The parameter at fault; empty: none, or the update as a whole."""

    def on_rank(self, rank: int) -> Problem:
        """Return the same with the rank named, as several may have to be told apart."""
        return replace(self, message=f"on rank {rank}: {self.message}")


class Ranks(Protocol):
    """The ranks of a run, seen from one of them.

    Every rank calls the same methods in the same order. None of them may block for long, whatever
    becomes of the others.
    """

    @property
    def rank(self) -> int:
        """This one's number, from 0; 0 has the link to the agent."""
        ...

    @property
    def size(self) -> int:
        """How many there are."""
        ...

    def exchange(self, messages: Messages) -> Messages:
        """Give what this rank has learned, and get what all have to act on at this boundary.

        Called once at every boundary where a step has run, by every rank, mostly with nothing.
        What is given may come back at a later boundary; it comes back in the same order and at the
        same boundary on every rank, also on the one that gave it.
        """
        ...

    def hold(self, messages: Messages) -> Messages:
        """Exchange at a boundary where the run is held; what is given comes back at once.

        Called again and again while a pause lasts, by every rank. The first rank waits a moment on
        its link before each call, and so sets the pace: none waits for another for long. What an
        earlier :meth:`exchange` was given and has not returned yet comes back first.
        """
        ...

    def vote(self, problem: Problem | None) -> Problem | None:
        """Say whether this rank could do what all were to do; may block for the others.

        Called only after an update was applied, or what it did was verified.

        Args:
            problem: Why not; None: it could.

        Returns:
            The problem of the lowest rank that has one, its rank named where there are several;
            None: all could.
        """
        ...

    def close(self) -> Messages:
        """Let go of the others.

        Called once, at the end of training; nothing else may be called afterwards. Blocks for
        nobody.

        Returns:
            What was given here and never came back, for it to be answered.
        """
        ...


class Alone:
    """The one rank of a run that has no others; fulfils :class:`Ranks`."""

    rank = 0
    size = 1

    def exchange(self, messages: Messages) -> Messages:
        """Return what is given."""
        return messages

    def hold(self, messages: Messages) -> Messages:
        """Return what is given."""
        return messages

    def vote(self, problem: Problem | None) -> Problem | None:
        """Return what is given."""
        return problem

    def close(self) -> Messages:
        """Return nothing: all that was given came back at once."""
        return ()


class Apart(Alone):
    """One of several ranks that do not agree, or not any more: it acts for itself alone.

    Args:
        rank: Its number, which it keeps: only the first speaks for the run.
    """

    def __init__(self, rank: int) -> None:
        self.rank = rank


def met(rank: int, size: int, args: Any = None) -> tuple[Ranks, Refused | None]:
    """Meet the other ranks of the run.

    Args:
        rank: Number of this rank.
        size: How many there are.
        args: The run's ``TrainingArguments``; None: a raw loop.

    Returns:
        The ranks, and why they can not agree; None: they can.
    """
    if size <= 1:
        return Alone(), None
    from trainer_agent.ranks.group import join

    try:
        return join(args), None
    except Refused as refused:
        return Apart(rank), refused


def shared_instance_id(ranks: Ranks, mine: str) -> tuple[Ranks, str, Refused | None]:
    """Agree on the first rank's id of this training process, for all to make the same names with.

    Returns:
        The ranks, that id, and why the ranks do not agree any more; None: they do.
    """
    if ranks.size == 1:
        return ranks, mine, None
    try:
        said = ranks.hold([link_pb2.RankMessage(instance_id=mine)] if ranks.rank == 0 else ())
    except RuntimeError as lost:  # another rank failed before it came here
        ranks.close()
        return Apart(ranks.rank), mine, Refused("RANKS_LOST", str(lost))
    return ranks, next(each.instance_id for each in said if each.HasField("instance_id")), None
