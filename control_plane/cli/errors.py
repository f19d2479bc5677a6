"""What went wrong, in one line, and the exit code for it."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final, TextIO

import typer

from control_plane.cli import printable
from control_plane.cli.exits import CommandError, ExitCode

if TYPE_CHECKING:
    from control_plane.client import MidcourseError


def report(message: str, details: Sequence[str] = ()) -> None:
    """Prints a message on stderr as one line, and details, each on a line of its own."""
    colour = False if os.environ.get("NO_COLOR") else None  # None: if stderr is a terminal
    try:
        typer.secho("midcourse: ", fg="red", bold=True, nl=False, err=True, color=colour)
        typer.echo(printable.line(message), err=True)
        for detail in details:
            typer.echo(f"  {printable.line(detail)}", err=True)
    except OSError:
        give_up(sys.stderr)  # nobody is left to tell; the exit code tells all the same


def give_up(stream: TextIO) -> None:
    """Drops what is buffered for a stream, if it can not be written.

    It would fail once more when the interpreter ends.
    """
    try:
        stream.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def tell_of_interruption(error: MidcourseError) -> None:
    """Says on stderr that a watch has lost its server, and goes on."""
    typer.echo(printable.line(f"{error}; trying again"), err=True)


@contextmanager
def telling_what_stays(message: str) -> Iterator[None]:
    """Says on stderr what stays as it is where a wait ends by Ctrl-C or for want of a server."""
    from control_plane.client import DeadlineExceededError, UnavailableError

    try:
        yield
    except (KeyboardInterrupt, DeadlineExceededError, UnavailableError) as error:
        if isinstance(error, KeyboardInterrupt) and sys.stderr.isatty():
            typer.echo(err=True)  # after the ^C that stands on this line
        typer.echo(printable.line(message), err=True)
        raise


CONTROL_PLANE_HINT: Final = (
    "is `midcourse serve` running there? --server or MIDCOURSE_CONTROL_PLANE name another place"
)
ANALYTICS_HINT: Final = (
    "is `midcourse analytics serve` running there?"
    " --analytics or MIDCOURSE_ANALYTICS name another place"
)


def from_client(error: MidcourseError, hint: str = CONTROL_PLANE_HINT) -> CommandError:
    """Returns the message and exit code for an error of a client.

    Args:
        error: What the client raised.
        hint: What to do where nobody answers, or a server of another kind.
    """
    import grpc

    from control_plane import client

    message = str(error)
    match error:
        case client.NotFoundError():
            return CommandError(message, ExitCode.NOT_FOUND)
        case client.UnavailableError() | client.DeadlineExceededError():
            if not error.reason:
                message += f"; {hint}"
            return CommandError(message, ExitCode.UNREACHABLE)
        case client.ResourceExhaustedError() if error.retry_delay is not None:
            return CommandError(f"{message}; try again later", ExitCode.UNREACHABLE)
        case client.UpdateNotAppliedError():
            return CommandError(message, ExitCode.NOT_APPLIED)
        case client.UpdateTimeoutError():
            return CommandError(message, ExitCode.TIMEOUT)
        case (
            client.InvalidArgumentError()
            | client.AlreadyExistsError()
            | client.FailedPreconditionError()
            | client.ConflictError()
            | client.OutOfRangeError()
            | client.PermissionDeniedError()
            | client.UnauthenticatedError()
            | client.ResourceExhaustedError()
        ):
            return CommandError(message, ExitCode.REFUSED)
        case _ if error.code is grpc.StatusCode.UNIMPLEMENTED:
            return CommandError(f"{message}; {hint}", ExitCode.FAILURE)
        case _:
            code = f" ({error.code.name})" if error.code is not None else ""
            return CommandError(f"{message}{code}", ExitCode.FAILURE)
