"""What becomes of held updates at a boundary: applied, rejected, expired, or held on."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from midcourse.control.v1 import update_pb2
from trainer_agent.ranks import Problem

if TYPE_CHECKING:
    from trainer_agent.parameters import Boundary
    from trainer_agent.steering.applying import Applier
    from trainer_agent.steering.held import Held, HeldUpdates
    from trainer_agent.steering.in_force import InForce
    from trainer_agent.steering.settling import Settlements


class DueUpdates:
    """Goes through the held updates.

    Args:
        held: The updates.
        applier: Applies those that are due.
        in_force: Takes those that were applied.
        settled: Takes the outcomes of the others.

    Attributes:
        off: Why every update is rejected; None: none is for that.
    """

    def __init__(
        self, held: HeldUpdates, applier: Applier, in_force: InForce, settled: Settlements
    ) -> None:
        self.off: Problem | None = None
        self._held = held
        self._applier = applier
        self._in_force = in_force
        self._settled = settled

    def go_through(self, boundary: Boundary, *, last: bool, begun: bool = False) -> None:
        """Settle or apply each whose time has come, in order of revision.

        Args:
            boundary: Where the run stands.
            last: No step follows.
            begun: The next step has begun.

        Raises:
            UndoError: One could not be taken back; those after it are held.
        """
        todo = self._held.take_all()
        try:
            while todo:
                self.go_on_with(todo.pop(0), boundary, last=last, begun=begun)
        finally:
            for held in todo:
                self._held.put_back(held)

    def go_on_with(
        self, held: Held, boundary: Boundary, *, last: bool = False, begun: bool = False
    ) -> None:
        """Settle, apply or hold one update.

        Raises:
            UndoError: It could not be taken back.
        """
        refused = held.refused
        if self.off is not None:
            self._reject(held, self.off, boundary)
        elif refused is not None:
            problem = Problem(refused.reason, refused.message, held.culprit)
            self._reject(held, problem, boundary)
        elif held.max_step is not None and boundary.next_step > held.max_step:
            self._settled.expire(
                held.update.revision,
                update_pb2.EXPIRY_CAUSE_MAX_STEP,
                f"step {boundary.next_step} is next, and step {held.max_step} was the last that "
                "was allowed to be the first with the new values",
            )
        elif last or self._applier.ending or boundary.next_step < held.due_step:
            self._held.put_back(held)
        elif self._applier.waits(held, boundary):
            # Once, and not at every boundary that it waits through.
            found = None if held.late else self._applier.refused(held, boundary)
            if found is None:
                self._held.put_back(replace(held, late=True))
            else:
                self._reject(held, found, boundary)
        else:
            found = self._applier.apply(held, boundary, self._in_force, begun=begun)
            if found is not None:
                self._reject(held, found, boundary)
            else:
                self.supersede(held, boundary)

    def supersede(self, newer: Held, boundary: Boundary) -> None:
        """Reject what was asked for earlier and would go over what was applied just now.

        Only what waits for a boundary of its parameters: what was asked for a later step is still
        meant for that.

        Args:
            newer: What was applied. Where the run did that by itself, whatever has waited is older.
            boundary: Where the run stands.
        """
        if self._applier.ending:
            return
        for revision in self._held:
            if 0 < newer.update.revision <= revision:
                break
            older = self._held[revision]
            if not older.late:
                continue
            problem = self._applier.gives_way(older, newer)
            if problem is not None:
                self._held.discard(revision)
                self._reject(older, problem, boundary)

    def _reject(self, held: Held, problem: Problem, boundary: Boundary) -> None:
        if held.result is not None:
            gone = f"the run has gone back to {held.result.checkpoint} all the same"
            problem = replace(problem, message=f"{problem.message}; {gone}")
        names = dict.fromkeys(change.parameter for change in held.update.spec.changes)
        self._settled.reject(held.update, problem, boundary, names)
