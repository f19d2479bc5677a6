"""Going back to a checkpoint, in the process that leaves and in the one that goes on there."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from midcourse.control.v1 import update_pb2
from trainer_agent.parameters import Refused
from trainer_agent.ranks import Problem
from trainer_agent.steering.checkpoints import step_of
from trainer_agent.steering.held import Held

if TYPE_CHECKING:
    from trainer_agent.parameters import Boundary
    from trainer_agent.steering.applying import Applier
    from trainer_agent.steering.due import DueUpdates
    from trainer_agent.steering.in_force import InForce
    from trainer_agent.steering.roll_back import HandOver
    from trainer_agent.steering.settling import Settlements


class GoingBack:
    """A run's way back.

    Args:
        applier: Begins it, and makes the changes that come with it.
        due: Goes on with the update that asked for it.
        in_force: What was applied.
        settled: Takes the outcomes.
    """

    def __init__(
        self, applier: Applier, due: DueUpdates, in_force: InForce, settled: Settlements
    ) -> None:
        self._applier = applier
        self._due = due
        self._in_force = in_force
        self._settled = settled

    @property
    def to(self) -> HandOver | None:
        """Where the run has to go back to, which ends this process; None: nowhere."""
        return self._applier.roll_back

    def may_leave(self, error: Exception | None, boundary: Boundary) -> bool:
        """Say whether the next process was told of a roll back; if not, the update is rejected.

        Args:
            error: Why it could not be told by this rank; None: it was, or another rank does it.
            boundary: Where the run stands.
        """
        problem = None
        if error is not None:
            what = f"the roll back could not be recorded: {type(error).__name__}: {error}"
            problem = Problem("ROLL_BACK_FAILED", what)
        problem = self._applier.vote(problem)
        left = self._applier.roll_back
        if problem is not None and left is not None:
            self._applier.roll_back = None
            if left.update.revision:
                self._settled.reject(left.update, problem, boundary, ())
        return problem is None

    def leave(self, boundary: Boundary) -> None:
        """End as the run goes back to a checkpoint: settle what no step has used."""
        problem = Problem("ROLLED_BACK", "the run goes back before a step has used the change")
        for each in self._in_force.take_unused():
            update = update_pb2.Update(revision=each.revision, request_id=each.request_id)
            self._settled.reject(update, problem, boundary, ())
        self._in_force.give_up_actions(boundary)

    def go_on(self, left: HandOver, boundary: Boundary) -> None:
        """Go on where a process before this one went back to, having loaded that checkpoint.

        What that process had applied since is superseded. The changes of the update that asked
        for all this are made, and it is settled.

        Args:
            left: What that process left.
            boundary: Where this run begins.

        Raises:
            ValueError: What it left is damaged.
        """
        self._settled.local.take_over(left.local)
        result = update_pb2.ActionResult(checkpoint=left.checkpoint)
        asked = replace(Held.of(left.update), action=None, due_step=0, max_step=None, result=result)
        problem = self._applier.vote(_why_not_there(left.checkpoint, boundary))
        if problem is not None:
            refused = Refused(problem.reason, problem.message)
            asked = replace(asked, refused=refused, result=None)
        else:
            self._applier.came_from = left
        revision, request_id = left.update.revision, left.update.request_id
        if request_id in self._settled.local or self._in_force.waits_for(revision):
            return
        if revision and self._settled.lineage.knows(revision):
            return
        if not revision:
            self._settled.local.keep(left.update)
        self._due.go_on_with(asked, boundary)


def _why_not_there(checkpoint: str, boundary: Boundary) -> Problem | None:
    """Return why a run is not where it was to go back to; None: it is."""
    try:
        if step_of(Path(checkpoint)) == boundary.global_step:
            return None
        why = f"goes on from step {boundary.global_step}; the training script has to resume from "
        why += "the checkpoint that it is told to"
    except (OSError, ValueError) as error:
        why = f"can not tell whether it has: {type(error).__name__}: {error}"
    return Problem("ROLL_BACK_FAILED", f"the run was to go back to {checkpoint} and {why}")
