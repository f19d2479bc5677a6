"""Going back to a checkpoint, in the process that leaves and in the one that goes on there."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from midcourse.agent.v1 import session_pb2
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
    def wanted(self) -> bool:
        """Whether the run has to go back to a checkpoint, which ends this process."""
        return self._applier.roll_back is not None

    def hand_over(self, boundary: Boundary) -> HandOver | None:
        """Return what the next process has to know; None: there is nowhere to go back to."""
        left = self._applier.roll_back
        if left is None:
            return None
        unused = [_unused(each.revision, boundary) for each in self._in_force.unverified]
        return replace(
            left,
            local=tuple(self._settled.local.state_dict()),
            # A control plane that hears of them only now would send these updates again.
            outcomes=(
                *self._settled.lineage.unacknowledged(),
                *(each for each in unused if each.revision),
            ),
        )

    def may_leave(self, error: Exception | None, boundary: Boundary) -> bool:
        """Say whether the next process was told of a roll back; if not, the update is rejected.

        Where the run itself wanted to go back it is held then.

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
            if not left.update.revision:
                self._settled.local.keep(left.update)
            self._settled.reject(left.update, problem, boundary, ())
            done = self._applier.protect_otherwise(problem, boundary, self._in_force)
            if done is not None:
                self._due.supersede(done, boundary)
        return problem is None

    def leave(self, boundary: Boundary) -> None:
        """End as the run goes back to a checkpoint: settle what no step has used."""
        for each in self._in_force.take_unused():
            self._settled.settle(_unused(each.revision, boundary), each.request_id)
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
        by = left.update.revision
        self._settled.take_over(
            each
            for each in left.outcomes
            # What was sent after the roll back is not its business, and is applied again.
            if not (each.HasField("applied") and 0 < by < each.revision)
        )
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


def _unused(revision: int, boundary: Boundary) -> session_pb2.UpdateOutcome:
    """Return how an update ended that no step has used when its run goes back."""
    rejected = update_pb2.Rejected(
        reason="ROLLED_BACK",
        message="the run goes back before a step has used the change",
        step=boundary.global_step,
    )
    return session_pb2.UpdateOutcome(revision=revision, rejected=rejected)


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
