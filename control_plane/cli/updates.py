"""`midcourse set`, `history` and `cancel`."""

from __future__ import annotations

import time
from datetime import timedelta
from typing import TYPE_CHECKING, Annotated, Literal, TypeAlias

import typer

from control_plane.cli.completion import complete_assignment
from control_plane.cli.durations import parse_duration
from control_plane.cli.exits import CommandError, ExitCode
from control_plane.cli.jobs import JobArgument
from control_plane.cli.session import Session, verb

if TYPE_CHECKING:
    from midcourse.control.v1 import update_pb2

ModeName: TypeAlias = Literal["set", "peak", "hold", "ramp", "schedule"]
ShapeName: TypeAlias = Literal["linear", "cosine", "constant"]

_ASSIGNMENT_HELP = (
    "NAME=VALUE sets, NAME=x0.5 multiplies, NAME=release gives the value back to the script's"
    " schedule. A text that looks like one of these: NAME='\"x2\"'."
)


def _duration(text: str) -> float:
    try:
        return parse_duration(text)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


@verb
def set_parameters(
    session: Session,
    job: JobArgument,
    assignments: Annotated[
        list[str],
        typer.Argument(
            metavar="NAME=VALUE...",
            help=_ASSIGNMENT_HELP,
            autocompletion=complete_assignment,
        ),
    ],
    mode: Annotated[
        ModeName,
        typer.Option(
            "--mode",
            help="set: the next step uses the value, the schedule keeps its shape from there on."
            " peak: the schedule's base value. hold: constant, for --steps or until released."
            " ramp: linear to the value over --steps. schedule: a new schedule from the value"
            " (or from NAME=current).",
        ),
    ] = "set",
    steps: Annotated[
        int | None,
        typer.Option(
            "--steps",
            min=1,
            help="Length of a hold, ramp or schedule, in optimizer steps.",
        ),
    ] = None,
    shape: Annotated[
        ShapeName | None,
        typer.Option("--shape", help="Form of a new schedule (required)."),
    ] = None,
    warmup: Annotated[
        int | None,
        typer.Option(
            "--warmup",
            min=0,
            help="Optimizer steps of linear warm-up of a new schedule.",
        ),
    ] = None,
    floor: Annotated[
        float | None,
        typer.Option("--floor", help="Last value of a new schedule."),
    ] = None,
    group: Annotated[
        str,
        typer.Option(
            "--group",
            help="Only this parameter group; by default all, their ratios kept.",
        ),
    ] = "",
    at_step: Annotated[
        int | None,
        typer.Option(
            "--at-step",
            min=1,
            help="First optimizer step to use the values; by default the next.",
        ),
    ] = None,
    max_step: Annotated[
        int | None,
        typer.Option(
            "--max-step",
            min=1,
            help="Last optimizer step that may be the first; past it the update expires.",
        ),
    ] = None,
    deadline: Annotated[
        float | None,
        typer.Option(
            "--deadline",
            parser=_duration,
            metavar="DURATION",
            help="Expire if not applied within this time, such as 10m.",
        ),
    ] = None,
    wait: Annotated[
        bool,
        typer.Option("--wait", help="Wait until the values are in force."),
    ] = False,
    timeout: Annotated[
        float | None,
        typer.Option(
            "--timeout",
            parser=_duration,
            metavar="DURATION",
            help="With --wait: how long at most; by default as long as it takes.",
        ),
    ] = None,
    reason: Annotated[
        str, typer.Option("--reason", help="Why, for whoever reads the history.")
    ] = "",
    expect_revision: Annotated[
        int | None,
        typer.Option(
            "--expect-revision",
            min=0,
            help="Refuse if the job's newest revision is not this one.",
        ),
    ] = None,
    request_id: Annotated[
        str | None,
        typer.Option(
            "--request-id",
            help="Id of the request: the same id again changes nothing more.",
        ),
    ] = None,
    force: Annotated[
        bool,
        typer.Option(
            "--force",
            help="Override soft guard rails, such as a jump of more than 10 x.",
        ),
    ] = False,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Check only."),
    ] = False,
) -> None:
    """Change parameters of a running job.

    All changes take effect at one optimizer step, or none does.
    """
    from control_plane.cli import describe, requested
    from control_plane.client import UpdateError, job_id
    from midcourse.control.v1 import control_pb2

    if timeout is not None and not wait:
        raise typer.BadParameter("--timeout is how long to --wait; give both")
    if wait and dry_run:
        raise typer.BadParameter("--dry-run changes nothing to --wait for; give one of them")
    how = requested.How(mode, steps, shape, warmup, floor, group)
    with session.connect(job) as plane:
        specs = plane.get_job(job).parameters
        update = plane.update_parameters(
            job,
            requested.changes(assignments, specs, how),
            at_step=at_step,
            max_step=max_step,
            deadline=None if deadline is None else timedelta(seconds=deadline),
            reason=reason,
            expected_revision=expect_revision,
            request_id=request_id,
            force=force,
            validate_only=dry_run,
        )
        response: control_pb2.UpdateParametersResponse | control_pb2.WaitUpdateResponse
        response = control_pb2.UpdateParametersResponse(update=update)
        failure: UpdateError | None = None
        if wait:
            try:
                update = plane.wait_applied(job, update.revision, timeout=timeout)
            except UpdateError as error:
                update, failure = error.update, error
            response = control_pb2.WaitUpdateResponse(update=update)
    if session.output.is_json:
        session.output.message(response)
    elif failure is None:
        asked = ", ".join(describe.changes(update))
        if update.HasField("applied"):
            session.output.line(describe.applied(update))
        elif dry_run:
            session.output.line(
                f"valid: {asked} {describe.when_due(update.spec)}; nothing was changed"
            )
        else:
            session.output.line(
                f"accepted as revision {update.revision}: {asked}"
                f" {describe.when_due(update.spec)}; see `midcourse history {job_id(job)}`"
            )
    if failure is not None:
        raise failure


@verb
def history(
    session: Session,
    job: JobArgument,
    last: Annotated[
        int | None, typer.Option("--last", "-n", min=1, help="Only the newest so many.")
    ] = None,
) -> None:
    """List a job's updates, newest first."""
    from itertools import islice

    from midcourse.control.v1 import control_pb2

    with session.connect(job) as plane:
        updates = list(islice(plane.list_updates(job, page_size=min(last or 1000, 1000)), last))
    if session.output.is_json:
        session.output.message(control_pb2.ListUpdatesResponse(updates=updates))
    elif not updates:
        session.output.line("no updates yet")
    else:
        from control_plane.cli import tables

        session.output.show(tables.history(updates, time.time()))


@verb
def cancel(
    session: Session,
    job: JobArgument,
    revision: Annotated[
        int, typer.Argument(metavar="REVISION", min=1, help="Which of its updates.")
    ],
    reason: Annotated[
        str, typer.Option("--reason", help="Why, for whoever reads the history.")
    ] = "",
    timeout: Annotated[
        float | None,
        typer.Option(
            "--timeout",
            parser=_duration,
            metavar="DURATION",
            help="How long to wait for a trainer that has the update already; by default 5s.",
        ),
    ] = None,
) -> None:
    """Withdraw an update that is not in force yet."""
    from midcourse.control.v1 import control_pb2, update_pb2

    with session.connect(job) as plane:
        update = plane.cancel_update(job, revision, reason=reason, wait=timeout)
    if session.output.is_json:
        session.output.message(control_pb2.CancelUpdateResponse(update=update))
    if update.state == update_pb2.UPDATE_STATE_CANCELLED:
        if not session.output.is_json:
            session.output.line(f"revision {revision} cancelled")
        return
    raise _not_cancelled(update)


def _not_cancelled(update: update_pb2.Update) -> CommandError:
    from control_plane.cli import describe
    from control_plane.client import is_settled

    if is_settled(update):
        became = (
            describe.applied(update) if update.HasField("applied") else describe.outcome(update)
        )
        return CommandError(f"too late to cancel: {became}", ExitCode.REFUSED)
    return CommandError(
        "the trainer has the update and has not answered yet; it will be withdrawn if it can be",
        ExitCode.TIMEOUT,
    )
