"""Updates that wait for their boundary."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from midcourse.control.v1 import update_pb2
from trainer_agent.parameters import Change, Refused
from trainer_agent.steering import convert
from trainer_agent.steering.actions import ActionKind, kind_of

if TYPE_CHECKING:
    from collections.abc import Iterable

MAX_HELD = 1_000
"""Updates held for later steps; one more is rejected."""

_NEVER = 2**64


@dataclass(frozen=True, slots=True)
class Held:
    """An update that waits for its boundary."""

    update: update_pb2.Update
    changes: Sequence[Change] = ()
    """What it asks to be changed."""
    action: ActionKind | None = None
    """What it asks to be done; None: nothing, or that was done before."""
    refused: Refused | None = None
    """Why what it asks for can never be done; None: it may be."""
    culprit: str = ""
    """The parameter that stands in the way of it; empty: none, or the update as a whole."""
    deadline: int | None = None
    """Nanoseconds of the monotonic clock; None: no limit."""
    due_step: int = 0
    """First optimizer step that may use it; 0: whichever comes next."""
    max_step: int | None = None
    """Last optimizer step that may be the first to use it; None: no limit."""
    result: update_pb2.ActionResult | None = None
    """What its action led to, where that is known already."""
    late: bool = False
    """It was due at a boundary that is not one of its parameters' own."""

    @classmethod
    def of(cls, update: update_pb2.Update, deadline: int | None = None) -> Held:
        """Make sense of an update.

        Of one that was applied before, in a part of the run that was gone back from, only the
        changes are made again, whatever the hour: an action is carried out once.
        """
        at = update.spec.apply_at
        again = update.state == update_pb2.UPDATE_STATE_APPLIED
        held = cls(
            update=update,
            deadline=None if again else deadline,
            due_step=at.step if at.HasField("step") else 0,
            max_step=at.max_step if at.HasField("max_step") and not again else None,
        )
        culprit = ""
        try:
            action = None
            if update.spec.HasField("action") and not again:
                action = kind_of(update.spec.action)
            changes = []
            for change in update.spec.changes:
                culprit = change.parameter
                changes.append(convert.change_from_proto(change))
            culprit = ""
            if action is ActionKind.STOP and changes:
                raise Refused(
                    "CHANGES_WITH_STOP",
                    "no step follows a stop, so that none would use the changes; send them to the "
                    "run once it goes on",
                )
            if action is None and not changes:
                raise Refused("EMPTY_UPDATE", "the update asks for nothing; give it a change")
        except Refused as refused:
            return replace(held, refused=refused, culprit=culprit)
        return replace(held, changes=tuple(changes), action=action)

    @property
    def wake_step(self) -> int:
        """First optimizer step before which something has to be done about it."""
        if self.refused is not None:
            return 0
        return self.due_step if self.max_step is None else min(self.due_step, self.max_step + 1)


class HeldUpdates:
    """The updates that wait, and whether it is worth looking at them."""

    def __init__(self) -> None:
        self._held: dict[int, Held] = {}
        self.wake_step = _NEVER
        """First optimizer step before which something has to be done about any of them."""
        self.first_deadline: int | None = None
        """The first that may pass, in nanoseconds of the monotonic clock; None: the clock does not
        matter."""

    def __contains__(self, revision: int) -> bool:
        return revision in self._held

    def __getitem__(self, revision: int) -> Held:
        return self._held[revision]

    def __len__(self) -> int:
        return len(self._held)

    def __iter__(self) -> Iterator[int]:
        return iter(sorted(self._held))

    def add(self, held: Held) -> None:
        """Hold an update; one too many is held only to be rejected at the next boundary."""
        if len(self._held) >= MAX_HELD and held.refused is None:
            full = Refused(
                "TOO_MANY_HELD",
                f"this trainer holds {MAX_HELD} updates for later steps already, which is the "
                "limit; withdraw some or wait",
            )
            held = replace(held, refused=full, culprit="")
        self.put_back(held)

    def put_back(self, held: Held) -> None:
        """Hold an update that was held before."""
        self._held[held.update.revision] = held
        self.wake_step = min(self.wake_step, held.wake_step)
        if held.deadline is not None:
            first = self.first_deadline
            self.first_deadline = held.deadline if first is None else min(first, held.deadline)

    def discard(self, revision: int) -> Held | None:
        """Give an update up and return it; None: it is not held."""
        return self._held.pop(revision, None)

    def overdue(self, nanos: int) -> Iterable[int]:
        """Return the updates whose deadline has passed.

        Args:
            nanos: The monotonic clock.
        """
        if self.first_deadline is None or nanos < self.first_deadline:
            return ()
        deadlines = {
            revision: held.deadline
            for revision, held in self._held.items()
            if held.deadline is not None
        }
        self.first_deadline = min(deadlines.values(), default=None)
        return sorted(revision for revision, each in deadlines.items() if nanos >= each)

    def wake_at_once(self) -> None:
        """Have all of them looked at."""
        self.wake_step = 0

    def take_all(self) -> list[Held]:
        """Return all, in order of revision, and hold none."""
        held = [self._held[revision] for revision in self]
        self._held.clear()
        self.wake_step, self.first_deadline = _NEVER, None
        return held
