"""Sending one change to many jobs: the options for it, and what is said of the answer."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Annotated, TypeAlias

import typer

from control_plane.cli.errors import telling_what_stays
from control_plane.cli.exits import CommandError, ExitCode

if TYPE_CHECKING:
    from control_plane.cli.sending import Sending
    from control_plane.cli.session import Session
    from control_plane.client import BatchOptions, Client
    from midcourse.control.v1 import batch_pb2, control_pb2, update_pb2

ASK_ABOVE = 10
"""Jobs that may be changed without being asked whether that is meant."""

_NAMED = 5

FleetOption: TypeAlias = Annotated[
    str,
    typer.Option(
        "--selector",
        "-l",
        metavar="SELECTOR",
        help="Instead of JOB: all jobs with these labels that have not ended, such as"
        " 'team=nlp,state=running'. Nothing is sent unless all of them take it.",
    ),
]
BestEffortOption: TypeAlias = Annotated[
    bool,
    typer.Option(
        "--best-effort", help="With --selector: send it to those that take it, list the others."
    ),
]
YesOption: TypeAlias = Annotated[
    bool,
    typer.Option(
        "--yes", "-y", help=f"With --selector: do not ask, even for more than {ASK_ABOVE} jobs."
    ),
]


@dataclass(frozen=True, slots=True)
class Fleet:
    """Which jobs, where it is not a single one.

    Attributes:
        selector: Their labels; empty: it is a single job.
        best_effort: Leave those out that do not take it.
        yes: Do not ask.
    """

    selector: str = ""
    best_effort: bool = False
    yes: bool = False

    def check(self, job: str) -> None:
        """Makes sure that one thing or the other is meant.

        Raises:
            typer.BadParameter: It is both or neither.
        """
        if bool(job) == bool(self.selector):
            raise typer.BadParameter("name one JOB, or several by --selector")
        if job and (self.best_effort or self.yes):
            flag = "--best-effort" if self.best_effort else "--yes"
            raise typer.BadParameter(f"{flag} goes with --selector")


def send(
    session: Session,
    plane: Client,
    fleet: Fleet,
    changes: Sequence[update_pb2.Change],
    action: update_pb2.Action | None,
    sending: Sending,
) -> None:
    """Sends an update to many jobs, and says what came of it.

    Raises:
        CommandError: With --wait, it came to nothing at some of the jobs, or not in time.
    """
    options: BatchOptions = {**sending.batch_options(), "best_effort": fleet.best_effort}
    checking: BatchOptions = {**options, "validate_only": True}
    ask = partial(plane.batch_update_parameters, fleet.selector, changes, action=action)
    with _naming_jobs():
        if sending.dry_run:
            answer = ask(**checking)
        else:
            if not fleet.yes and _is_a_person(session):
                _confirm(ask(**checking))
            answer = ask(**options)
    if sending.wait:
        stays = (
            f"it stays accepted as {answer.batch.name};"
            f" `midcourse batch {_number(answer.batch)} --cancel` takes it back"
        )
        with telling_what_stays(stays):
            follow(session, plane, answer.batch.name, sending.timeout, begun=answer)
    elif session.output.is_json:
        session.output.message(answer)
    else:
        from control_plane.cli import fleet_tables

        if sending.dry_run:
            session.output.show(fleet_tables.expected(answer))
            session.output.line(f"{_would(answer)}; nothing was changed")
        else:
            session.output.show(fleet_tables.items(answer.batch.spec, answer.items))
            session.output.line(
                f"accepted as {answer.batch.name} for {fleet_tables.jobs(_taken(answer))};"
                f" see `midcourse batch {_number(answer.batch)} --watch`"
            )


def follow(
    session: Session,
    plane: Client,
    name: str,
    timeout: float | None,
    *,
    begun: control_pb2.BatchUpdateParametersResponse | None = None,
) -> None:
    """Shows how a batch goes on until it is settled, then what became of it.

    Args:
        session: The run of the verb.
        plane: The control plane.
        name: The batch's.
        timeout: Seconds to follow it at most; None: as long as it takes.
        begun: What is known of it already; None: nothing.

    Raises:
        CommandError: It came to nothing at some of the jobs, or is not settled in time.
    """
    from control_plane.cli import fleet_tables
    from control_plane.cli.fleet_progress import Followed

    followed = Followed(session, plane, name, timeout)
    if begun is not None:
        followed.note(begun)
    in_time = followed.run()
    batch, items = followed.batch, followed.items()
    if session.output.is_json:
        from midcourse.control.v1 import control_pb2

        session.output.message(control_pb2.BatchUpdateParametersResponse(batch=batch, items=items))
    else:
        session.output.show(fleet_tables.items(batch.spec, items))
        session.output.line(fleet_tables.summary(batch, items))
    _judge(batch, in_time=in_time, waited=timeout)


def _judge(batch: batch_pb2.Batch, *, in_time: bool, waited: float | None) -> None:
    from control_plane.cli.fleet_progress import deleted

    progress = batch.progress
    failed = progress.rejected + progress.expired + progress.cancelled
    if failed:
        raise CommandError(
            f"not applied at {failed} of {progress.total} jobs", ExitCode.NOT_APPLIED
        )
    if gone := deleted(progress):
        raise CommandError(
            f"{gone} of {progress.total} jobs were deleted, and what became of it there is not"
            " known",
            ExitCode.NOT_APPLIED,
        )
    if not in_time:
        still = progress.pending + progress.delivered
        raise CommandError(
            f"{still} of {progress.total} jobs have not settled it after {waited:g} s; it stays"
            f" accepted, see `midcourse batch {_number(batch)}`",
            ExitCode.TIMEOUT,
        )


@contextmanager
def _naming_jobs() -> Iterator[None]:
    """Has an error name the jobs that do not take it, each on a line of its own.

    Raises:
        CommandError: Instead of the error.
    """
    from control_plane.cli.errors import from_client
    from control_plane.client import MidcourseError

    try:
        yield
    except MidcourseError as error:
        said = [violation for violation in error.violations if violation.field.startswith("jobs")]
        refused, total = error.metadata.get("refused"), error.metadata.get("total")
        if not said or refused is None or total is None:
            raise
        named: dict[str, list[str]] = {}
        for violation in said:
            named.setdefault(violation.description, []).append(violation.field)
        details = [f"{_names(fields)}{why}" for why, fields in named.items()]
        advice = "" if refused == total else "; --best-effort leaves those out that do not take it"
        message = f"nothing was sent: {refused} of {total} jobs do not take it{advice}"
        raise CommandError(message, from_client(error).code, details) from error


def _names(fields: Sequence[str]) -> str:
    """Returns the beginning of a line about some jobs: "a, b and 3 more: "."""
    jobs = [field.removeprefix("jobs/") for field in fields if field != "jobs"]
    shown = ", ".join(jobs[:_NAMED])
    more = f" and {len(jobs) - _NAMED} more" if len(jobs) > _NAMED else ""
    return f"{shown}{more}: " if jobs else ""


def _is_a_person(session: Session) -> bool:
    return session.output.is_live and sys.stdin.isatty()


def _confirm(would: control_pb2.BatchUpdateParametersResponse) -> None:
    """Asks whether so many jobs are meant.

    Raises:
        typer.Abort: They are not.
    """
    from control_plane.cli import fleet_tables

    count = _taken(would)
    if count > ASK_ABOVE:
        asked = ", ".join(fleet_tables.asked(would.batch.spec))
        typer.confirm(f"{asked} for {fleet_tables.jobs(count)}?", abort=True, err=True)


def _would(answer: control_pb2.BatchUpdateParametersResponse) -> str:
    from control_plane.cli import fleet_tables

    refused = answer.batch.progress.refused
    words = f"valid for {fleet_tables.jobs(_taken(answer))}"
    return f"{words}, not for {refused}" if refused else words


def _taken(answer: control_pb2.BatchUpdateParametersResponse) -> int:
    return answer.batch.progress.total - answer.batch.progress.refused


def _number(batch: batch_pb2.Batch) -> str:
    return batch.name.removeprefix("batches/")
