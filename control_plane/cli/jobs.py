"""`midcourse jobs`, `job` and `delete`."""

from __future__ import annotations

import enum
import time
from typing import Annotated

import typer

from control_plane.cli.completion import complete_job
from control_plane.cli.session import Session, verb


def _not_empty(job: str) -> str:
    if not job:
        raise typer.BadParameter("it is empty, as a variable that is not set may be")
    return job


JobArgument = Annotated[
    str,
    typer.Argument(
        metavar="JOB", help="Id of the job.", autocompletion=complete_job, callback=_not_empty
    ),
]
SelectorOption = Annotated[
    str,
    typer.Option(
        "--selector",
        "-l",
        metavar="SELECTOR",
        help="Only jobs with these labels, such as 'team=nlp,method in (dpo,orpo),!frozen'.",
    ),
]


class StateName(enum.StrEnum):
    """Names of job states on the command line."""

    PENDING = "pending"
    RUNNING = "running"
    STALLED = "stalled"
    PAUSED = "paused"
    LOST = "lost"
    FINISHED = "finished"
    FAILED = "failed"


@verb
def list_jobs(
    session: Session,
    selector: SelectorOption = "",
    state: Annotated[
        list[StateName] | None,
        typer.Option("--state", case_sensitive=False, help="Only jobs in this state; repeatable."),
    ] = None,
) -> None:
    """List the jobs."""
    from midcourse.control.v1 import control_pb2, job_pb2

    states = [job_pb2.JobState.Value(f"JOB_STATE_{name.name}") for name in state or []]
    with session.connect() as plane:
        listing = list(plane.list_jobs(selector, states=states, page_size=1000))
    if session.output.is_json:
        session.output.message(control_pb2.ListJobsResponse(jobs=listing))
    elif not listing:
        session.output.line(
            "no such jobs" if selector or states else "no jobs yet that you may see"
        )
    else:
        from control_plane.cli import tables

        session.output.show(tables.jobs(listing, time.time()))


@verb
def show_job(session: Session, job: JobArgument) -> None:
    """Show one job and what can be changed in it."""
    from midcourse.control.v1 import control_pb2

    with session.connect(job) as plane:
        found = plane.get_job(job)
    if session.output.is_json:
        session.output.message(control_pb2.GetJobResponse(job=found))
        return
    from control_plane.cli import tables

    session.output.show(tables.facts(found, time.time()))
    if found.parameters:
        session.output.show("", tables.parameters(found))
    if found.metrics:
        session.output.show("", tables.metrics(found))


@verb
def delete(
    session: Session,
    job: JobArgument,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check only; delete nothing.")] = False,
) -> None:
    """Delete a job with its updates and metrics.

    Refused while its trainer is connected.
    """
    from control_plane.client import job_id
    from midcourse.control.v1 import control_pb2

    with session.connect(job) as plane:
        plane.delete_job(job, validate_only=dry_run)
    if session.output.is_json:
        session.output.message(control_pb2.DeleteJobResponse())
    elif dry_run:
        session.output.line(f"{job_id(job)} can be deleted; nothing was")
    else:
        session.output.line(f"{job_id(job)} deleted")
