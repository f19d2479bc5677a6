"""Carrying out one update at a boundary: on every rank all of it, or on none anything."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from grpc_runtime.failpoints import reached
from midcourse.control.v1 import update_pb2
from trainer_agent.parameters import (
    Applied,
    Boundary,
    ChangeFailed,
    GuardRails,
    LiveParameter,
    Refused,
    UndoError,
)
from trainer_agent.ranks import Problem, Ranks
from trainer_agent.steering.actions import ActionKind, Actions
from trainer_agent.steering.guard_rails import GUARD
from trainer_agent.steering.held import Held
from trainer_agent.steering.roll_back import HandOver
from trainer_agent.steering.transacting import Transactions

if TYPE_CHECKING:
    from midcourse.link.v1 import link_pb2
    from trainer_agent.steering.in_force import InForce
    from trainer_agent.steering.protection import Protection
    from trainer_agent.steering.settling import Settlements

logger = logging.getLogger(__name__)


class Applier:
    """Makes the changes of updates and begins their actions.

    Args:
        parameters: The live parameters, by name.
        rails: The owner's limits, by parameter.
        actions: What can be done besides.
        ranks: The ranks of the run.
        settled: Takes the outcomes.

    Attributes:
        actions: What can be done besides, and what of it is under way.
        roll_back: Where the run has to go back to, which ends this process; None: nowhere.
        came_from: What this process went back from; None: it did not.
    """

    def __init__(
        self,
        parameters: Mapping[str, LiveParameter],
        rails: Mapping[str, GuardRails],
        actions: Actions,
        ranks: Ranks,
        settled: Settlements,
    ) -> None:
        self.actions = actions
        self.roll_back: HandOver | None = None
        self.came_from: HandOver | None = None
        self._transactions = Transactions(parameters, rails)
        self._ranks = ranks
        self._settled = settled
        self._veto: Problem | None = None
        self._protecting: tuple[Protection, link_pb2.LossAlarm] | None = None

    def rails(self, name: str) -> GuardRails | None:
        """Return the owner's limits of a parameter; None: there are none."""
        return self._transactions.rails(name)

    @property
    def ending(self) -> bool:
        """Whether no step follows that could use anything."""
        return self.actions.stopping or self.roll_back is not None

    def veto(self, problem: Problem) -> None:
        """Have whatever comes until all ranks have switched off come to nothing on each of them."""
        self._veto = problem

    def vote(self, problem: Problem | None) -> Problem | None:
        """Return why not all ranks could do what this one could; None: they could."""
        return self._ranks.vote(problem or self._veto)

    def waits(self, held: Held, boundary: Boundary) -> bool:
        """Say whether a due update has to wait for a boundary that is its parameters' own.

        That follows from how far the run has come, and so is the same on all ranks.
        """
        return not self._transactions.opens(held.changes, boundary)

    def gives_way(self, older: Held, newer: Held) -> Problem | None:
        """Say whether, and why, an update that waits would go over one that was applied now.

        All ranks have to ask at the same boundary: each may have other parameters.
        """
        over = self._transactions.goes_over(older.changes, newer.changes)
        problem = None
        if over is not None:
            changed = ", ".join(_names(newer))
            problem = Problem(
                "SUPERSEDED",
                f"{_called(newer)}, which is newer, changed {changed} while this one "
                f"waited for a boundary where it can be applied, and its {over.parameter} would go "
                "over that; nothing of this one was done: send again what is still wanted of it",
                over.parameter,
            )
        return self.vote(problem)

    def refused(self, held: Held, boundary: Boundary) -> Problem | None:
        """Say why an update that waits would be refused, as far as can be told; None: it may not.

        All ranks have to ask at the same boundary.
        """
        problem = None
        try:
            self._check(held, boundary)
        except Exception as error:  # noqa: BLE001 - whatever it is, the others wait for an answer
            problem = _problem(error)
        return self.vote(problem)

    def apply(
        self, held: Held, boundary: Boundary, in_force: InForce, *, begun: bool = False
    ) -> Problem | None:
        """Carry out an update; returns why it could not be.

        Args:
            held: The update.
            boundary: Where the run stands.
            in_force: Takes it.
            begun: The next step has begun.

        Raises:
            UndoError: It could not be, and what it had changed could not be taken back.
        """
        reached("trainer.apply")
        applied: list[Applied] = []
        checkpoint = ""
        stuck: UndoError | None = None
        problem = None
        intact = in_force.intact()
        try:
            if held.action is ActionKind.ROLL_BACK:
                # The changes are made where the run has gone back to; here nothing would use them.
                checkpoint = self.actions.checkpoint(held.update.spec.action.roll_back.checkpoint)
                self._check(held, boundary)
            else:
                if held.action is not None:
                    self.actions.check(held.action)
                author, force = held.update.author, held.update.spec.force
                applied = self._transactions.make(held.changes, boundary, author, force=force)
                reached("trainer.applied")
        except UndoError as error:
            stuck, problem = error, _problem(error)
        except Exception as error:  # noqa: BLE001 - whatever it is, the others wait for an answer
            problem = _problem(error)
        voted = self.vote(problem)
        if voted is not None:
            if problem is None:
                self._transactions.undo(applied)
            if stuck is not None:
                self._settled.reject(held.update, voted, boundary, _names(held))
                raise stuck
            return voted
        if held.action is ActionKind.ROLL_BACK:
            self._go_back(held, checkpoint)
            return None
        done = held.action is None
        if held.action is ActionKind.STOP:
            self.stop(boundary, in_force, begun=begun)
        elif held.action is not None:
            done = self.actions.begin(held.action)
        in_force.add(replace(held, action=None) if done else held, applied, boundary, intact)
        return None

    def stop(self, boundary: Boundary, in_force: InForce, *, begun: bool) -> None:
        """Have the run end: here, or after the step that has begun, which uses what is in force.

        Raises:
            UndoError: Something that no step has used could not be taken back.
        """
        self.actions.begin(ActionKind.STOP)
        if not begun:
            self.take_back_unused(boundary, in_force)

    def take_back_unused(self, boundary: Boundary, in_force: InForce) -> None:
        """Undo what no step has used, as none will.

        Raises:
            UndoError: Something could not be taken back; all is settled nevertheless.
        """
        unused = in_force.take_unused()
        for each in unused:
            self._settled.expire(
                each.revision,
                update_pb2.EXPIRY_CAUSE_JOB_ENDED,
                too_late(boundary),
                each.request_id,
            )
        # What came with a checkpoint can not be taken back, and nothing uses it either.
        self._transactions.undo([change for each in unused for change in each.undo])

    def protect(
        self,
        protection: Protection,
        alarm: link_pb2.LossAlarm,
        boundary: Boundary,
        in_force: InForce,
    ) -> Held:
        """Do what the owner wants to be done about a loss that is not finite.

        Returns:
            What was done.

        Raises:
            RuntimeError: Nothing of it could be done.
        """
        checkpoint, problem = None, None
        if protection.on_nonfinite_loss == "roll_back":
            checkpoint, problem = self._checkpoint_before(alarm.step)
        self._protecting = protection, alarm
        return self._protect(checkpoint, problem, boundary, in_force)

    def protect_otherwise(
        self, problem: Problem, boundary: Boundary, in_force: InForce
    ) -> Held | None:
        """Do what else there is to do about a loss for which the run could not go back.

        Returns:
            What was done; None: nothing, as it was to go back for another reason.

        Raises:
            RuntimeError: Nothing of it could be done.
        """
        if self._protecting is None:
            return None
        return self._protect(None, problem, boundary, in_force)

    def _protect(
        self,
        checkpoint: str | None,
        problem: Problem | None,
        boundary: Boundary,
        in_force: InForce,
    ) -> Held:
        assert self._protecting is not None
        protection, alarm = self._protecting
        for spec in protection.attempts(alarm, checkpoint, self._in_a_row(checkpoint)):
            update = self._settled.local.new(spec)
            try:
                self._settled.local.keep(update)
            except Refused as refused:  # the same on all ranks
                problem = _problem(refused)
                continue
            held = Held.of(update)
            problem = self.apply(held, boundary, in_force)
            if problem is None:
                if self.roll_back is None:
                    self._protecting = None
                logger.warning(
                    "%s; as the job's owner wants it, the run is now held or taken back (%s)",
                    spec.reason,
                    update.request_id,
                )
                return held
            self._settled.local.drop(update.request_id)
        raise RuntimeError(f"the run could not be protected: {problem and problem.message}")

    def _check(self, held: Held, boundary: Boundary) -> None:
        author, force = held.update.author, held.update.spec.force
        self._transactions.check(held.changes, boundary, author, force=force)

    def _checkpoint_before(self, step: int) -> tuple[str | None, Problem | None]:
        """Return where all ranks can go back to, or why they can not."""
        checkpoint, problem = None, None
        try:
            checkpoint = self.actions.checkpoint("", before=step)
        except Exception as error:  # noqa: BLE001 - whatever it is, the others wait for an answer
            problem = _problem(error)
        voted = self.vote(problem)
        return (checkpoint, None) if voted is None else (None, voted)

    def _in_a_row(self, checkpoint: str | None) -> int:
        """Return how often in a row the run has gone back to a checkpoint by itself."""
        before = self.came_from
        return before.in_a_row if before is not None and before.checkpoint == checkpoint else 0

    def _go_back(self, held: Held, checkpoint: str) -> None:
        by_itself = held.update.author == GUARD
        self._settled.local.drop(held.update.request_id)  # the next process has it to tell
        self.roll_back = HandOver(
            checkpoint=checkpoint,
            update=held.update,
            in_a_row=self._in_a_row(checkpoint) + 1 if by_itself else 0,
        )


def too_late(boundary: Boundary) -> str:
    """Say why an update that no step has used by the end never will be in force."""
    return f"training ended at step {boundary.global_step}, before a step used the change"


def _problem(error: Exception) -> Problem:
    if isinstance(error, UndoError):
        return Problem("UNDO_FAILED", str(error))
    if isinstance(error, Refused):
        culprit = error.change.parameter if isinstance(error, ChangeFailed) else ""
        return Problem(error.reason, error.message, culprit)
    return Problem("APPLY_FAILED", f"{type(error).__name__}: {error}")


def _called(held: Held) -> str:
    """Return what to call an update in a message; what a run does by itself has no number yet."""
    update = held.update
    return f"update {update.revision}" if update.revision else f"update {update.request_id}"


def _names(held: Held) -> list[str]:
    return list(dict.fromkeys(change.parameter for change in held.update.spec.changes))
