"""`midcourse set`, `history` and `cancel`."""

from __future__ import annotations

import time
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, TypeAlias

import typer

from control_plane.cli import fleet, sending
from control_plane.cli.assignments import is_assignment
from control_plane.cli.completion import complete_assignment, complete_job
from control_plane.cli.exits import CommandError, ExitCode
from control_plane.cli.fleet import BestEffortOption, Fleet, FleetOption, YesOption
from control_plane.cli.jobs import JobArgument, SelectorOption
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
    from midcourse.control.v1 import job_pb2, update_pb2

ModeName: TypeAlias = Literal["set", "peak", "hold", "ramp", "schedule"]
ShapeName: TypeAlias = Literal["linear", "cosine", "constant"]

_OF_ALL = 100
"""Updates of all jobs that are listed unless more are asked for."""

_ASSIGNMENT_HELP = (
    "NAME=VALUE sets, NAME=x0.5 (or 'NAME*0.5') multiplies, NAME=release gives the value back to"
    " the script's schedule. A text that looks like one of these: NAME='\"x2\"'."
)


@verb
def set_parameters(
    session: Session,
    job: Annotated[
        str,
        typer.Argument(metavar="[JOB]", help="Id of the job.", autocompletion=complete_job),
    ] = "",
    assignments: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="NAME=VALUE...",
            help=_ASSIGNMENT_HELP,
            autocompletion=complete_assignment,
        ),
    ] = None,
    selector: FleetOption = "",
    best_effort: BestEffortOption = False,
    yes: YesOption = False,
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
    """Change parameters of a running job, or of many.

    All changes take effect at one optimizer step, or none does.
    """
    from control_plane.cli import requested

    given = list(assignments or ())
    if selector and is_assignment(job):
        job, given = "", [job, *given]
    to = Fleet(selector, best_effort, yes)
    to.check(job)
    if not given:
        example = f"midcourse set JOB {job}" if is_assignment(job) else f"set {job} NAME=VALUE"
        raise typer.BadParameter(f"name a job and what to change: {example}")
    # What can be told without a job is told whether or not there is one.
    assigned = requested.split(given)
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
    asked.check()
    with session.connect(job) as plane:
        if job:
            specs = plane.get_job(job).parameters
            changes = requested.changes(assigned, specs, asked)
            sending.send(session, plane, job, changes, None, how, specs)
            return
        # One of them tells how values are to be read; whether they suit each, the server says.
        first = next(plane.list_jobs(selector, states=_declaring(), page_size=1), None)
        changes = requested.changes(assigned, first.parameters if first else (), asked)
        fleet.send(session, plane, to, changes, None, how)


def _declaring() -> list[job_pb2.JobState.ValueType]:
    """Returns the states of jobs that a selector chooses and that have said what they have."""
    from midcourse.control.v1 import job_pb2

    return [
        job_pb2.JOB_STATE_RUNNING,
        job_pb2.JOB_STATE_STALLED,
        job_pb2.JOB_STATE_PAUSED,
        job_pb2.JOB_STATE_LOST,
    ]


@verb
def history(
    session: Session,
    job: Annotated[
        str,
        typer.Argument(
            metavar="[JOB]",
            help="Id of the job; by default all jobs.",
            autocompletion=complete_job,
        ),
    ] = "",
    selector: SelectorOption = "",
    author: Annotated[
        str, typer.Option("--author", help="Only what this principal asked for.")
    ] = "",
    since: Annotated[
        float | None,
        typer.Option(
            "--since",
            parser=duration,
            metavar="DURATION",
            help="Only what was asked for within this time, such as 2h.",
        ),
    ] = None,
    last: Annotated[
        int | None,
        typer.Option(
            "--last",
            "-n",
            min=1,
            help=f"Only the newest so many; by default all of a job's, {_OF_ALL} of all jobs.",
        ),
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
    """List the updates of a job, or of all, newest first."""
    from itertools import islice

    from midcourse.control.v1 import control_pb2

    if job and selector:
        raise typer.BadParameter("name one JOB, or several by --selector")
    if export is not None and not job:
        raise typer.BadParameter("--export writes the recipe of one run; name its JOB")
    if export is not None and (last is not None or author or since is not None):
        raise typer.BadParameter(
            "--export writes all that was applied; leave --last, --author and --since out"
        )
    most = last if job else last or _OF_ALL
    with session.connect(job) as plane:
        found = plane.list_updates(
            job or "-",
            page_size=min(most or 1000, 1000),
            selector=selector,
            author=author,
            start_time=None if since is None else timedelta(seconds=-since),
        )
        updates = list(islice(found, most))
        if export is not None:
            _export(session, plane, job, updates, export)
            return
        specs = () if session.output.is_json or not job else plane.get_job(job).parameters
    if session.output.is_json:
        session.output.message(control_pb2.ListUpdatesResponse(updates=updates))
    elif not updates:
        yet = "no updates yet" if job else "no updates yet that you may see"
        session.output.line("no such updates" if selector or author or since else yet)
    else:
        from control_plane.cli import tables

        session.output.show(tables.history(updates, time.time(), specs, of_all=not job))


def _export(
    session: Session, plane: Client, job: str, updates: list[update_pb2.Update], file: Path
) -> None:
    from control_plane.cli import export

    recipe = export.recipe(plane.get_job(job), updates, plane.get_lineage(job))
    text = export.to_json(recipe) if session.output.is_json else export.to_yaml(recipe)
    if str(file) == "-":
        session.output.write(text.removesuffix("\n"))
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
