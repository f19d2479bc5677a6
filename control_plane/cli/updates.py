"""`midcourse set`, `history` and `cancel`."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, TypeAlias

import typer

from control_plane.cli import sending
from control_plane.cli.completion import complete_assignment
from control_plane.cli.exits import CommandError, ExitCode
from control_plane.cli.jobs import JobArgument
from control_plane.cli.sending import (
    AtStepOption,
    DeadlineOption,
    DryRunOption,
    ExpectRevisionOption,
    MaxStepOption,
    ReasonOption,
    RequestIdOption,
    Sending,
    TimeoutOption,
    WaitOption,
    duration,
)
from control_plane.cli.session import Session, verb

if TYPE_CHECKING:
    from control_plane.client import Client
    from midcourse.control.v1 import update_pb2

ModeName: TypeAlias = Literal["set", "peak", "hold", "ramp", "schedule"]
ShapeName: TypeAlias = Literal["linear", "cosine", "constant"]

_ASSIGNMENT_HELP = (
    "NAME=VALUE sets, NAME=x0.5 multiplies, NAME=release gives the value back to the script's"
    " schedule. A text that looks like one of these: NAME='\"x2\"'."
)


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
    coupling: Annotated[
        Literal["none", "linear", "sqrt"],
        typer.Option(
            "--coupling",
            help="How the learning rate follows a batch size: in proportion, by the square root.",
        ),
    ] = "none",
    at_step: AtStepOption = None,
    max_step: MaxStepOption = None,
    deadline: DeadlineOption = None,
    wait: WaitOption = False,
    timeout: TimeoutOption = None,
    reason: ReasonOption = "",
    expect_revision: ExpectRevisionOption = None,
    request_id: RequestIdOption = None,
    force: Annotated[
        bool,
        typer.Option(
            "--force",
            help="Override soft guard rails, such as a jump of more than 10 x.",
        ),
    ] = False,
    dry_run: DryRunOption = False,
) -> None:
    """Change parameters of a running job.

    All changes take effect at one optimizer step, or none does.
    """
    from control_plane.cli import requested

    options = sending.options(
        at_step=at_step,
        max_step=max_step,
        deadline=deadline,
        reason=reason,
        expect_revision=expect_revision,
        request_id=request_id,
        force=force,
    )
    how = Sending(options, wait, timeout, dry_run)
    how.check()
    asked = requested.How(mode, steps, shape, warmup, floor, group, coupling)
    with session.connect(job) as plane:
        specs = plane.get_job(job).parameters
        changes = requested.changes(assignments, specs, asked)
        sending.send(session, plane, job, changes, None, how, specs)


@verb
def history(
    session: Session,
    job: JobArgument,
    last: Annotated[
        int | None, typer.Option("--last", "-n", min=1, help="Only the newest so many.")
    ] = None,
    export: Annotated[
        Path | None,
        typer.Option(
            "--export",
            metavar="FILE",
            allow_dash=True,
            dir_okay=False,
            help="Write what was applied to a file that replays the run without a control plane:"
            " YAML, with -o json JSON; - is stdout.",
        ),
    ] = None,
) -> None:
    """List a job's updates, newest first."""
    from itertools import islice

    from midcourse.control.v1 import control_pb2

    if export is not None and last is not None:
        raise typer.BadParameter("--export writes all that was applied; leave --last out")
    with session.connect(job) as plane:
        updates = list(islice(plane.list_updates(job, page_size=min(last or 1000, 1000)), last))
        if export is not None:
            _export(session, plane, job, updates, export)
            return
        known = None if session.output.is_json or not updates else plane.get_job(job)
    if session.output.is_json:
        session.output.message(control_pb2.ListUpdatesResponse(updates=updates))
    elif known is None:
        session.output.line("no updates yet")
    else:
        from control_plane.cli import tables

        session.output.show(tables.history(updates, time.time(), known.parameters))


def _export(
    session: Session, plane: Client, job: str, updates: list[update_pb2.Update], file: Path
) -> None:
    from control_plane.cli import export

    recipe = export.recipe(plane.get_job(job), updates, plane.get_lineage(job))
    text = export.to_json(recipe) if session.output.is_json else export.to_yaml(recipe)
    if str(file) == "-":
        session.output.line(text.removesuffix("\n"))
        return
    try:
        file.write_text(text, encoding="utf-8", newline="\n")
    except OSError as error:
        message = f"{file} can not be written: {error.strerror or error}"
        raise CommandError(message, ExitCode.FAILURE) from error
    if not session.output.is_json:
        count = len(recipe.content()["updates"])
        session.output.line(f"{count} update{'' if count == 1 else 's'} written to {file}")


@verb
def cancel(
    session: Session,
    job: JobArgument,
    revision: Annotated[
        int, typer.Argument(metavar="REVISION", min=1, help="Which of its updates.")
    ],
    reason: ReasonOption = "",
    timeout: Annotated[
        float | None,
        typer.Option(
            "--timeout",
            parser=duration,
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
