"""Sending updates: the options that every verb has for it, and what it says of the answer."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Annotated, TypeAlias, cast

import typer

from control_plane.cli.durations import parse_duration
from control_plane.cli.errors import telling_what_stays

if TYPE_CHECKING:
    from control_plane.cli.session import Session
    from control_plane.client import BatchOptions, Client, UpdateError, UpdateOptions
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
        help="First optimizer step to come after the change; by default the next.",
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

    def batch_options(self) -> BatchOptions:
        """Returns the same for many jobs; revisions are each job's own.

        Raises:
            typer.BadParameter: A revision is expected.
        """
        given = dict(self.options)
        if given.pop("expected_revision", None) is not None:
            raise typer.BadParameter("--expect-revision is about one job; leave --selector out")
        return cast("BatchOptions", given)

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
        stays = (
            f"it stays accepted as revision {update.revision};"
            f" `midcourse cancel {job_id(job)} {update.revision}` takes it back"
        )
        with telling_what_stays(stays):
            if changes:
                _tell_of_pause(session, plane, job)
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


def _tell_of_pause(session: Session, plane: Client, job: str) -> None:
    """Says that it will take a while, where the job is held: a step has to use a change first."""
    from control_plane.client import job_id
    from midcourse.control.v1 import job_pb2

    held = not session.output.is_json and plane.get_job(job).state == job_pb2.JOB_STATE_PAUSED
    if held:
        session.output.line(
            f"{job_id(job)} is paused: the first step after `midcourse resume {job_id(job)}` "
            "confirms the change; waiting for it"
        )
