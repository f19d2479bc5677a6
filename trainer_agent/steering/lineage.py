"""What of a run's updates is in force and how each ended: the memory that rides in checkpoints."""

from __future__ import annotations

import base64
import binascii
import bisect
from collections.abc import Iterable, Iterator
from typing import Any

from google.protobuf.message import DecodeError

from midcourse.agent.v1 import session_pb2

MAX_OUTCOMES = 1_000
"""Outcomes kept with their details; of older ones only that they are in force."""


class RevisionSet:
    """A set of revisions, kept as ranges, as updates mostly come without gaps."""

    def __init__(self, ranges: Iterable[tuple[int, int]] = ()) -> None:
        self._firsts: list[int] = []
        self._lasts: list[int] = []
        for first, last in ranges:
            if last < first or (self._lasts and first <= self._lasts[-1]):
                raise ValueError(
                    f"ranges of revisions must ascend and not overlap, got {first} to {last}"
                )
            self._firsts.append(first)
            self._lasts.append(last)

    @classmethod
    def covering(cls, ranges: Iterable[tuple[int, int]]) -> RevisionSet:
        """Return a set of all that is in ranges, whatever their order and overlap."""
        made = cls()
        for first, last in sorted(ranges):
            if made._lasts and first <= made._lasts[-1] + 1:
                made._lasts[-1] = max(made._lasts[-1], last)
            elif first <= last:
                made._firsts.append(first)
                made._lasts.append(last)
        return made

    def __contains__(self, revision: int) -> bool:
        index = bisect.bisect_right(self._firsts, revision) - 1
        return index >= 0 and revision <= self._lasts[index]

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return zip(self._firsts, self._lasts, strict=True)

    def add(self, revision: int) -> None:
        """Put a revision in; does nothing where it is in."""
        if revision in self:
            return
        index = bisect.bisect_right(self._firsts, revision)
        self._firsts.insert(index, revision)
        self._lasts.insert(index, revision)
        self._join(index)
        self._join(index - 1)

    def discard(self, revision: int) -> None:
        """Take a revision out; does nothing where it is not in."""
        if revision not in self:
            return
        index = bisect.bisect_right(self._firsts, revision) - 1
        first, last = self._firsts[index], self._lasts[index]
        parts = [(first, revision - 1), (revision + 1, last)]
        kept = [(begin, end) for begin, end in parts if begin <= end]
        self._firsts[index : index + 1] = [begin for begin, _ in kept]
        self._lasts[index : index + 1] = [end for _, end in kept]

    def _join(self, index: int) -> None:
        """Make one range of this one and the next where they touch."""
        if 0 <= index < len(self._firsts) - 1 and self._lasts[index] + 1 == self._firsts[index + 1]:
            self._lasts[index] = self._lasts.pop(index + 1)
            del self._firsts[index + 1]


class Lineage:
    """Which updates are in force, how updates ended, and whom that has still to be told."""

    def __init__(self) -> None:
        self.in_force = RevisionSet()
        """Every revision in force, confirmed by a step or not yet."""
        self._outcomes: dict[int, session_pb2.UpdateOutcome] = {}
        self._unacknowledged: dict[int, None] = {}

    def knows(self, revision: int) -> bool:
        """Say whether a revision is in force or settled."""
        return revision in self._outcomes or revision in self.in_force

    @property
    def newest(self) -> int:
        """Highest revision that is known to it; 0: none is."""
        in_force = max((last for _, last in self.in_force), default=0)
        return max(in_force, max(self._outcomes, default=0))

    def settle(self, outcome: session_pb2.UpdateOutcome, *, superseded: bool = False) -> None:
        """Record how an update ended. It stays unacknowledged until told otherwise.

        Args:
            outcome: How.
            superseded: The run has gone back to before it: it was applied, and is in force no more.
        """
        revision = outcome.revision
        self._outcomes[revision] = outcome
        self._unacknowledged[revision] = None
        if outcome.HasField("applied") and not superseded:
            self.in_force.add(revision)
        if len(self._outcomes) > MAX_OUTCOMES:
            self._forget_oldest()

    def outcome(self, revision: int) -> session_pb2.UpdateOutcome | None:
        """Return how an update ended; None: it has not, or the details are not kept any more."""
        return self._outcomes.get(revision)

    def acknowledge(self, revisions: Iterable[int]) -> None:
        """Note that the outcomes of these revisions need not be told again."""
        for revision in revisions:
            self._unacknowledged.pop(revision, None)

    def unacknowledged(self) -> list[session_pb2.UpdateOutcome]:
        """Return the outcomes that nobody has confirmed to have on disk, in order of settling."""
        return [self._outcomes[revision] for revision in self._unacknowledged]

    def state_dict(self) -> dict[str, Any]:
        """Return it as JSON. Outcomes are protobuf in base64, so that nothing of them is lost."""
        return {
            "in_force": [[first, last] for first, last in self.in_force],
            "outcomes": [encoded(outcome) for outcome in self._outcomes.values()],
            "unacknowledged": list(self._unacknowledged),
        }

    @classmethod
    def from_state_dict(cls, state: dict[str, Any]) -> Lineage:
        """Read what ``state_dict`` returned.

        Raises:
            ValueError: It is something else.
        """
        lineage = cls()
        try:
            lineage.in_force = RevisionSet((int(a), int(b)) for a, b in state["in_force"])
            for text in state["outcomes"]:
                outcome = decoded(text)
                lineage._outcomes[outcome.revision] = outcome
            lineage._unacknowledged = {
                int(revision): None
                for revision in state["unacknowledged"]
                if int(revision) in lineage._outcomes
            }
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"the saved lineage is damaged: {error!r}") from error
        return lineage

    def _forget_oldest(self) -> None:
        acknowledged = (each for each in self._outcomes if each not in self._unacknowledged)
        oldest = next(acknowledged, next(iter(self._outcomes)))
        del self._outcomes[oldest]
        self._unacknowledged.pop(oldest, None)


def encoded(outcome: session_pb2.UpdateOutcome) -> str:
    """Return an outcome as text for JSON."""
    return base64.b64encode(outcome.SerializeToString(deterministic=True)).decode("ascii")


def decoded(text: str) -> session_pb2.UpdateOutcome:
    """Read what ``encoded`` returned.

    Raises:
        ValueError: It is something else.
    """
    try:
        return session_pb2.UpdateOutcome.FromString(base64.b64decode(text, validate=True))
    except (binascii.Error, DecodeError) as error:
        raise ValueError(f"not an outcome: {error}") from error
