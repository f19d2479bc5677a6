"""What a roll back takes away.

Going back to a checkpoint takes a run, its parameters included, back to how it was there. What was
applied since is not applied again: neither by the process that went back, nor by any after it. A
process that merely crashed and goes on from a checkpoint is another matter: what the checkpoint
lacks is applied again there.

What a checkpoint contains its process says by the revisions in force. Steps do not tell: what was
applied at the boundary at which a checkpoint was saved is in it, and a checkpoint may come from a
part of the run that was gone back from itself.
"""

from __future__ import annotations

from dataclasses import replace

from control_plane.domain.session import FullState, contains
from control_plane.domain.update import ActionKind, Applied, Rejected, Update, UpdateSpec

FAILED = "ROLL_BACK_FAILED"
"""Reason of a rejection: the run did not go back."""


def is_roll_back(spec: UpdateSpec) -> bool:
    """Whether it asks for going back to a checkpoint."""
    return spec.action is not None and spec.action.kind is ActionKind.ROLL_BACK


def went_back(update: Update, state: FullState, began_at: int | None) -> bool:
    """Whether a process tells that it has gone back, as an update asked for.

    The process that is asked ends; only the one that has gone back has the update in force. Where
    the changes of the same update wait for a boundary of their own it holds the update as it
    begins, when nothing can have been sent to it yet. Where they could not be made any more, the
    update is rejected there and then, and the run has gone back all the same.

    Args:
        update: An update that was open until now.
        state: What the process says.
        began_at: Optimizer steps done as it began, where this is the first that it says; None: it
            is not.
    """
    if not is_roll_back(update.spec):
        return False
    if contains(state.in_force, update.revision):
        return True
    if began_at is None:
        return False
    return update.revision in state.held or any(
        outcome.revision == update.revision
        and isinstance(outcome.result, Rejected)
        and outcome.result.reason != FAILED
        and outcome.result.step == began_at
        for outcome in state.outcomes
    )


def after_return(update: Update, *, stands: bool, roll_back: int | None) -> Update:
    """An applied update, once a process has begun that goes on from a checkpoint.

    Args:
        update: The update.
        stands: It is in force in that process.
        roll_back: Revision of the roll back that the process came from; None: it just goes on.
    """
    last = update.last_applied
    if last is None:
        return update
    if stands:
        # Also where a checkpoint was gone back to that an earlier roll back had left behind.
        by = None
    elif roll_back is not None and update.revision < roll_back and last.rolled_back_by is None:
        by = roll_back
    else:
        return update
    return update if last.rolled_back_by == by else _with_last(update, last, by)


def _with_last(update: Update, last: Applied, by: int | None) -> Update:
    marked = replace(last, rolled_back_by=by)
    if update.reapplied:
        return replace(update, reapplied=(*update.reapplied[:-1], marked))
    return replace(update, outcome=marked)
