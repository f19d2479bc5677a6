"""`midcourse pause`, `resume`, `checkpoint`, `evaluate`, `stop` and `rollback`."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, TypeAlias

import typer

from control_plane.cli import fleet, sending
from control_plane.cli.completion import complete_job
from control_plane.cli.fleet import BestEffortOption, Fleet, FleetOption, YesOption
from control_plane.cli.sending import (
    AtStepOption,
    DeadlineOption,
    DryRunOption,
    MaxStepOption,
    ReasonOption,
    RequestIdOption,
    Sending,
    TimeoutOption,
    WaitOption,
)
from control_plane.cli.session import Session, verb

if TYPE_CHECKING:
    from midcourse.control.v1 import update_pb2

_JobArgument: TypeAlias = Annotated[
    str, typer.Argument(metavar="JOB", help="Id of the job.", autocompletion=complete_job)
]


def _send(session: Session, job: str, to: Fleet, action: update_pb2.Action, how: Sending) -> None:
    how.check()
    to.check(job)
    with session.connect(job) as plane:
        if job:
            sending.send(session, plane, job, (), action, how)
        else:
            fleet.send(session, plane, to, (), action, how)


def _verb_for(name: str, summary: str) -> Callable[..., None]:
    """Returns the verb for an action of :mod:`control_plane.actions` that takes no argument."""

    def command(
        session: Session,
        job: _JobArgument = "",
        selector: FleetOption = "",
        best_effort: BestEffortOption = False,
        yes: YesOption = False,
        at_step: AtStepOption = None,
        max_step: MaxStepOption = None,
        deadline: DeadlineOption = None,
        wait: WaitOption = False,
        timeout: TimeoutOption = None,
        reason: ReasonOption = "",
        request_id: RequestIdOption = None,
        dry_run: DryRunOption = False,
    ) -> None:
        from control_plane import actions

        options = sending.options(
            at_step=at_step,
            max_step=max_step,
            deadline=deadline,
            reason=reason,
            request_id=request_id,
        )
        make = getattr(actions, name)
        how = Sending(options, wait, timeout, dry_run)
        _send(session, job, Fleet(selector, best_effort, yes), make(), how)

    command.__doc__ = summary
    return verb(command)


pause = _verb_for(
    "pause",
    """Hold training at a step boundary until resumed.

    Changes that are sent meanwhile take effect at once, at the step of the pause.
    """,
)
resume = _verb_for(
    "resume",
    """Go on after a pause.

    Does nothing where training is not paused.
    """,
)
checkpoint = _verb_for(
    "save_checkpoint",
    """Save a checkpoint at the next step boundary.

    With --wait, its path is printed.
    """,
)
evaluate = _verb_for(
    "evaluate",
    """Evaluate at the next step boundary.

    With --wait, the metrics are printed.
    """,
)
stop = _verb_for(
    "stop",
    """Save and end training in good order.

    The training process exits with 0.
    """,
)


@verb
def rollback(
    session: Session,
    job: _JobArgument = "",
    selector: FleetOption = "",
    best_effort: BestEffortOption = False,
    yes: YesOption = False,
    to: Annotated[
        str,
        typer.Option(
            "--to",
            metavar="CHECKPOINT",
            help="Path of the checkpoint on the training host; by default the newest.",
        ),
    ] = "",
    at_step: AtStepOption = None,
    max_step: MaxStepOption = None,
    deadline: DeadlineOption = None,
    wait: WaitOption = False,
    timeout: TimeoutOption = None,
    reason: ReasonOption = "",
    request_id: RequestIdOption = None,
    dry_run: DryRunOption = False,
) -> None:
    """Go back to a checkpoint.

    Needs a training process that `midcourse train` supervises: it is started again from there.
    """
    from control_plane import actions

    options = sending.options(
        at_step=at_step, max_step=max_step, deadline=deadline, reason=reason, request_id=request_id
    )
    how = Sending(options, wait, timeout, dry_run)
    _send(session, job, Fleet(selector, best_effort, yes), actions.roll_back(to), how)
