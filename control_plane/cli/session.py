"""What every verb shares: the options for server and output, and the connection."""

from __future__ import annotations

import difflib
import functools
import inspect
import typing
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, Concatenate, ParamSpec, TypeVar

import typer

from control_plane.cli.exits import CommandError, ExitCode
from control_plane.cli.output import Output, OutputFormat

if TYPE_CHECKING:
    from control_plane.client import Client

P = ParamSpec("P")
S = TypeVar("S")

ServerOption = Annotated[
    str | None,
    typer.Option(
        "--server",
        "-s",
        metavar="ADDRESS",
        help="Control plane: host:port or unix:/path."
        " (env MIDCOURSE_CONTROL_PLANE; default 127.0.0.1:50051)",
    ),
]
AnalyticsOption = Annotated[
    str | None,
    typer.Option(
        "--analytics",
        metavar="ADDRESS",
        help="Analytics service: host:port or unix:/path."
        " (env MIDCOURSE_ANALYTICS; default 127.0.0.1:50052)",
    ),
]
OutputOption = Annotated[
    OutputFormat | None,
    typer.Option("--output", "-o", help="Tables for people or protobuf JSON for programs."),
]

_SUGGESTED = 5


@dataclass(frozen=True, slots=True)
class Session:
    """One run of a verb.

    Attributes:
        server: Address as given; None leaves it to the environment and the default.
        output: Where results go.
    """

    server: str | None = None
    output: Output = field(default_factory=Output)

    @contextmanager
    def connect(self, job: str = "", *, timeout: float = 10.0) -> Iterator[Client]:
        """Opens a client.

        Args:
            job: The job that the verb is about, if any: where there is none of that name, the
                error names those that were perhaps meant.
            timeout: Seconds that a call may take.

        Raises:
            CommandError: There is no such job.
        """
        from control_plane.client import Client, NotFoundError, job_id

        try:
            plane = Client(self.server, timeout=timeout)
        except ValueError as error:
            raise CommandError(str(error), ExitCode.USAGE) from None
        with plane:
            try:
                yield plane
            except NotFoundError as error:
                known = [job_id(known.name) for known in plane.list_jobs()] if job else []
                if not job or job_id(job) in known:
                    raise
                message = f"there is no job {job_id(job)!r}; {_suggestion(job_id(job), known)}"
                raise CommandError(message, ExitCode.NOT_FOUND) from error


def _suggestion(job: str, known: list[str]) -> str:
    if not known:
        return "there are no jobs yet that you may see"
    if close := difflib.get_close_matches(job, known, n=3):
        return f"did you mean {' or '.join(close)}?"
    more = f" and {len(known) - _SUGGESTED} more" if len(known) > _SUGGESTED else ""
    return f"there are {', '.join(known[:_SUGGESTED])}{more}"


@dataclass(frozen=True, slots=True)
class GlobalOptions:
    """The options that may stand before the verb.

    Attributes:
        server: Address of the control plane; None leaves it to the environment and the default.
        output: Format of what is printed; None: a table.
        analytics: Address of the analytics service; as with ``server``.
    """

    server: str | None = None
    output: OutputFormat | None = None
    analytics: str | None = None

    def then(self, later: GlobalOptions) -> GlobalOptions:
        """Returns these options as what stands later on the command line changes them."""
        return GlobalOptions(
            later.server or self.server,
            later.output or self.output,
            later.analytics or self.analytics,
        )


def options_before(context: typer.Context) -> GlobalOptions:
    """Returns the options that stand before a verb."""
    return context.find_object(GlobalOptions) or GlobalOptions()


def verb(command: Callable[Concatenate[Session, P], None]) -> Callable[..., None]:
    """Turns a function that takes a session first into a typer command.

    The command also takes ``--server`` and ``--output``, which may stand before the verb too.
    """
    options = {"server": ServerOption, "output": OutputOption}
    return with_session(
        command, options, lambda given: Session(given.server, Output(given.output or "table"))
    )


def with_session(
    command: Callable[Concatenate[S, P], None],
    options: Mapping[str, Any],
    begin: Callable[[GlobalOptions], S],
) -> Callable[..., None]:
    """Turns a function that takes some session first into a typer command.

    Args:
        command: The function.
        options: The global options that the command takes too, as typer reads them.
        begin: Makes the session of the options given.
    """
    signature = inspect.signature(command)
    hints = typing.get_type_hints(command, include_extras=True)
    _, *own = signature.parameters.values()

    @functools.wraps(command)
    def wrapper(context: typer.Context, **arguments: Any) -> None:
        here = GlobalOptions(**{name: arguments.pop(name) for name in options})
        session = begin(options_before(context).then(here))
        command(session, **arguments)  # type: ignore[call-arg]  # by name

    keyword = inspect.Parameter.KEYWORD_ONLY
    parameters = [
        inspect.Parameter("context", keyword, annotation=typer.Context),
        *(p.replace(annotation=hints[p.name], kind=keyword) for p in own),
        *(
            inspect.Parameter(name, keyword, default=None, annotation=option)
            for name, option in options.items()
        ),
    ]
    # typer reads both.
    wrapper.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    wrapper.__annotations__ = {p.name: p.annotation for p in parameters}
    return wrapper
