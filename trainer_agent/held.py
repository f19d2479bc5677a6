"""Updates that wait for their boundary."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from trainer_agent import convert
from trainer_agent.parameters import Change, Refused

if TYPE_CHECKING:
    from midcourse.control.v1 import update_pb2

MAX_HELD = 1_000
"""Updates held for later steps; one more is rejected."""

_NEVER = 2**64


@dataclass(frozen=True, slots=True)
class Held:
    """An update that waits for its boundary."""

    update: update_pb2.Update
    changes: Sequence[Change] | Refused
    """What it asks for, or why that can never be done."""
    culprit: str
    """The parameter that stands in the way of it; empty: none, or the update as a whole."""
    deadline: int | None
    """Nanoseconds of the monotonic clock; None: no limit."""
    due_step: int
    """First optimizer step that may use it; 0: whichever comes next."""
    max_step: int | None
    """Last optimizer step that may be the first to use it; None: no limit."""

    @classmethod
    def of(cls, update: update_pb2.Update, deadline: int | None) -> Held:
        """Make sense of an update."""
        at = update.spec.apply_at
        changes, culprit = _changes(update.spec)
        return cls(
            update=update,
            changes=changes,
            culprit=culprit,
            deadline=deadline,
            due_step=at.step if at.HasField("step") else 0,
            max_step=at.max_step if at.HasField("max_step") else None,
        )

    @property
    def wake_step(self) -> int:
        """First optimizer step before which something has to be done about it."""
        if isinstance(self.changes, Refused):
            return 0
        return self.due_step if self.max_step is None else min(self.due_step, self.max_step + 1)


class HeldUpdates:
    """The updates that wait, and whether it is worth looking at them."""

    def __init__(self) -> None:
        self._held: dict[int, Held] = {}
        # Before the one and the other there is nothing to be done about any of them.
        self._wake_step = _NEVER
        self._wake_nanos: int | None = None

    def __contains__(self, revision: int) -> bool:
        return revision in self._held

    def __len__(self) -> int:
        return len(self._held)

    def __iter__(self) -> Iterator[int]:
        return iter(sorted(self._held))

    def add(self, held: Held) -> None:
        """Hold an update; one too many is held only to be rejected at the next boundary."""
        if len(self._held) >= MAX_HELD and not isinstance(held.changes, Refused):
            full = Refused(
                "TOO_MANY_HELD",
                f"this trainer holds {MAX_HELD} updates for later steps already, which is the "
                "limit; withdraw some or wait",
            )
            held = replace(held, changes=full, culprit="")
        self.put_back(held)

    def put_back(self, held: Held) -> None:
        """Hold an update that was held before."""
        self._held[held.update.revision] = held
        self._wake_step = min(self._wake_step, held.wake_step)
        if held.deadline is not None:
            nanos = self._wake_nanos
            self._wake_nanos = held.deadline if nanos is None else min(nanos, held.deadline)

    def discard(self, revision: int) -> None:
        """Give an update up; does nothing where it is not held."""
        self._held.pop(revision, None)

    def has_deadlines(self) -> bool:
        """Say whether the clock matters."""
        return self._wake_nanos is not None

    def wakes(self, next_step: int, nanos: int | None) -> bool:
        """Say whether something has to be done about any of them.

        Args:
            next_step: The optimizer step that comes next.
            nanos: The monotonic clock; None where there are no deadlines.
        """
        return next_step >= self._wake_step or (
            nanos is not None and self._wake_nanos is not None and nanos >= self._wake_nanos
        )

    def wake_at_once(self) -> None:
        """Have all of them looked at."""
        self._wake_step = 0

    def take_all(self) -> list[Held]:
        """Return all, in order of revision, and hold none."""
        held = [self._held[revision] for revision in self]
        self._held.clear()
        self._wake_step, self._wake_nanos = _NEVER, None
        return held


def _changes(spec: update_pb2.UpdateSpec) -> tuple[Sequence[Change] | Refused, str]:
    """Return what an update asks for; or why that can never be done, and the parameter at fault."""
    if spec.HasField("action"):
        return Refused(
            "ACTION_UNSUPPORTED",
            "this trainer carries out no actions, and the update asks for "
            f"{spec.action.WhichOneof('kind') or 'one'}; send its changes without the action",
        ), ""
    if not spec.changes:
        return Refused("EMPTY_UPDATE", "the update asks for nothing; give it a change"), ""
    changes: list[Change] = []
    for change in spec.changes:
        try:
            changes.append(convert.change_from_proto(change))
        except Refused as refused:
            return refused, change.parameter
    return changes, ""
