"""Sending updates: the options that every verb has for it, and what it says of the answer."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Annotated, TypeAlias

import typer

from control_plane.cli.durations import parse_duration
from control_plane.cli.errors import from_client
from control_plane.cli.exits import CommandError, ExitCode

if TYPE_CHECKING:
    from control_plane.cli.session import Session
    from control_plane.client import Client, MidcourseError, UpdateError, UpdateOptions
    from midcourse.control.v1 import parameter_pb2, update_pb2


def duration(text: str) -> float:
    """Reads a duration as an option has it."""
    try:
        return parse_duration(text)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


AtStepOption: TypeAlias = Annotated[
    int | None,
    typer.Option(
        "--at-step",
        min=1,
        help="First optimizer step to come after it; by default the next.",
    ),
]
MaxStepOption: TypeAlias = Annotated[
    int | None,
    typer.Option(
        "--max-step",
        min=1,
        help="Last optimizer step that may be the first; past it the update expires.",
    ),
]
DeadlineOption: TypeAlias = Annotated[
    float | None,
    typer.Option(
        "--deadline",
        parser=duration,
        metavar="DURATION",
        help="Expire if not applied within this time, such as 10m.",
    ),
]
WaitOption: TypeAlias = Annotated[
    bool, typer.Option("--wait/--no-wait", help="Wait until it is applied; by default do not.")
]
TimeoutOption: TypeAlias = Annotated[
    float | None,
    typer.Option(
        "--timeout",
        parser=duration,
        metavar="DURATION",
        help="With --wait: how long at most; by default as long as it takes.",
    ),
]
ReasonOption: TypeAlias = Annotated[
    str, typer.Option("--reason", help="Why, for whoever reads the history.")
]
ExpectRevisionOption: TypeAlias = Annotated[
    int | None,
    typer.Option(
        "--expect-revision",
        min=0,
        help="Refuse if the job's newest revision is not this one.",
    ),
]
RequestIdOption: TypeAlias = Annotated[
    str | None,
    typer.Option(
        "--request-id",
        help="Id of the request: the same id again changes nothing more.",
    ),
]
DryRunOption: TypeAlias = Annotated[bool, typer.Option("--dry-run", help="Check only.")]


@dataclass(frozen=True, slots=True)
class Sending:
    """How updates are sent.

    Attributes:
        options: When, why and under which conditions they apply.
        wait: Wait for the outcome.
        timeout: How long at most, in seconds; None: as long as it takes.
        dry_run: Check only.
    """

    options: UpdateOptions
    wait: bool = False
    timeout: float | None = None
    dry_run: bool = False

    def check(self) -> None:
        """Makes sure that the options go together.

        Raises:
            typer.BadParameter: They do not.
        """
        if self.timeout is not None and not self.wait:
            raise typer.BadParameter("--timeout is how long to --wait; give both")
        if self.wait and self.dry_run:
            raise typer.BadParameter("--dry-run changes nothing to --wait for; give one of them")


def options(
    *,
    at_step: int | None = None,
    max_step: int | None = None,
    deadline: float | None = None,
    reason: str = "",
    expect_revision: int | None = None,
    request_id: str | None = None,
    force: bool = False,
) -> UpdateOptions:
    """Returns the client's options for what was given on the command line."""
    return {
        "at_step": at_step,
        "max_step": max_step,
        "deadline": None if deadline is None else timedelta(seconds=deadline),
        "reason": reason,
        "expected_revision": expect_revision,
        "request_id": request_id,
        "force": force,
    }


def send(
    session: Session,
    plane: Client,
    job: str,
    changes: Sequence[update_pb2.Change],
    action: update_pb2.Action | None,
    sending: Sending,
    parameters: Iterable[parameter_pb2.ParameterSpec] = (),
) -> None:
    """Sends an update to one job, and says what came of it.

    Args:
        session: The run of the verb.
        plane: The control plane.
        job: Id of the job.
        changes: What to change.
        action: What to do.
        sending: How.
        parameters: The live parameters of the job, which tell when an update is due.

    Raises:
        UpdateError: It was not applied, or not in time.
    """
    from control_plane.cli import describe
    from control_plane.client import UpdateError, job_id
    from midcourse.control.v1 import control_pb2

    options: UpdateOptions = {**sending.options, "validate_only": sending.dry_run}
    update = plane.update_parameters(job, changes, action=action, **options)
    response: control_pb2.UpdateParametersResponse | control_pb2.WaitUpdateResponse
    response = control_pb2.UpdateParametersResponse(update=update)
    failure: UpdateError | None = None
    if sending.wait:
        try:
            update = plane.wait_applied(job, update.revision, timeout=sending.timeout)
        except UpdateError as error:
            update, failure = error.update, error
        response = control_pb2.WaitUpdateResponse(update=update)
    if session.output.is_json:
        session.output.message(response)
    elif failure is None:
        asked = (
            f"{', '.join(describe.changes(update))} {describe.when_due(update.spec, parameters)}"
        )
        if update.HasField("applied"):
            session.output.line(describe.applied(update))
        elif sending.dry_run:
            session.output.line(f"valid: {asked}; nothing was changed")
        else:
            session.output.line(
                f"accepted as revision {update.revision}: {asked};"
                f" see `midcourse history {job_id(job)}`"
            )
    if failure is not None:
        raise failure


def send_to_all(
    session: Session,
    plane: Client,
    jobs: Sequence[str],
    action: update_pb2.Action,
    sending: Sending,
) -> None:
    """Sends an action to several jobs, once all of them have been found to take it.

    Raises:
        CommandError: One of them does not take it, and nothing was sent; or what was sent to some
            came to nothing.
    """
    from control_plane.cli import tables
    from control_plane.client import MidcourseError
    from midcourse.control.v1 import control_pb2

    refusals: dict[str, MidcourseError] = {}
    sent: list[update_pb2.Update] = []

    @contextmanager
    def noted(job: str) -> Iterator[None]:
        try:
            yield
        except MidcourseError as error:
            refusals[job] = error

    checking: UpdateOptions = {**sending.options, "validate_only": True}
    for job in jobs:
        with noted(job):
            sent.append(plane.update_parameters(job, action=action, **checking))
    if refusals:
        raise _failed(refusals, f"nothing was sent, as {len(refusals)} of {len(jobs)} refused it")
    if not sending.dry_run:
        sent.clear()
        for job in jobs:
            with noted(job):
                sent.append(plane.update_parameters(job, action=action, **sending.options))
        if sending.wait:
            sent, failures = _settled(plane, sent, sending.timeout)
            refusals.update(failures)
    if session.output.is_json:
        session.output.message(control_pb2.ListUpdatesResponse(updates=sent))
    elif sending.dry_run:
        session.output.line(f"valid for {', '.join(jobs)}; nothing was done")
    else:
        session.output.show(tables.sent(sent))
    if refusals:
        raise _failed(refusals, f"{len(refusals)} of {len(jobs)} failed")


def _settled(
    plane: Client, sent: Iterable[update_pb2.Update], timeout: float | None
) -> tuple[list[update_pb2.Update], dict[str, MidcourseError]]:
    """Returns updates as they stand in the end, and what went wrong, by job."""
    from control_plane.client import MidcourseError, UpdateError, job_id

    settled: list[update_pb2.Update] = []
    failures: dict[str, MidcourseError] = {}
    end = None if timeout is None else time.monotonic() + timeout
    for update in sent:
        job = job_id(update.name)
        left = None if end is None else max(0.0, end - time.monotonic())
        try:
            settled.append(plane.wait_applied(job, update.revision, timeout=left))
        except UpdateError as error:
            settled.append(error.update)
            failures[job] = error
        except MidcourseError as error:
            settled.append(update)
            failures[job] = error
    return settled, failures


def _failed(failures: dict[str, MidcourseError], summary: str) -> CommandError:
    """Returns one error for those of several jobs; its code is that of the first."""
    details = [f"{job}: {from_client(error).message}" for job, error in failures.items()]
    code = next((from_client(error).code for error in failures.values()), ExitCode.FAILURE)
    return CommandError(summary, code, details)
