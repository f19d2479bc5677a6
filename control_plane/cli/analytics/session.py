"""What the verbs about questions share: the options for addresses and output, the connections."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Concatenate, Final, ParamSpec

from control_plane.cli.errors import ANALYTICS_HINT, from_client
from control_plane.cli.exits import CommandError, ExitCode
from control_plane.cli.output import Output
from control_plane.cli.session import (
    AnalyticsOption,
    GlobalOptions,
    OutputOption,
    ServerOption,
    Session,
    with_session,
)

if TYPE_CHECKING:
    from analytics_service.client import Chat, Client, MidcourseError

P = ParamSpec("P")

_OPTIONS: Final = {"analytics": AnalyticsOption, "output": OutputOption}


@dataclass(frozen=True, slots=True)
class AnalyticsSession:
    """One run of a verb that asks the analytics service.

    Attributes:
        analytics: Address as given; None leaves it to the environment and the default.
        plane: How to reach the control plane, for what the service never does itself.
        output: Where results go.
    """

    analytics: str | None = None
    plane: Session = field(default_factory=Session)
    output: Output = field(default_factory=Output)

    @contextmanager
    def connect(self) -> Iterator[Client]:
        """Opens a client.

        Raises:
            CommandError: The address is none, or the service refuses or does not answer.
        """
        from analytics_service.client import Client, MidcourseError

        try:
            client = Client(self.analytics)
        except ValueError as error:
            raise CommandError(str(error), ExitCode.USAGE) from None
        with client:
            try:
                yield client
            except MidcourseError as error:
                raise from_client(error, ANALYTICS_HINT) from error


def chat_failure(error: MidcourseError, chat: Chat) -> CommandError:
    """Returns the message and exit code for an error of an answer."""
    from analytics_service.client import DeadlineExceededError

    if isinstance(error, DeadlineExceededError) and not error.reason and chat.started is not None:
        return CommandError(
            "the answer was not whole in time and is stopped; what there is of it is kept;"
            " --timeout gives it longer",
            ExitCode.UNREACHABLE,
        )
    return from_client(error, ANALYTICS_HINT)


def analytics_verb(
    command: Callable[Concatenate[AnalyticsSession, P], None],
) -> Callable[..., None]:
    """Turns a function that takes an analytics session first into a typer command.

    The command also takes ``--analytics`` and ``--output``, which may stand before the verb too.
    """
    return with_session(command, _OPTIONS, begin)


def both_services_verb(
    command: Callable[Concatenate[AnalyticsSession, P], None],
) -> Callable[..., None]:
    """As :func:`analytics_verb`, for a command that may ask the control plane too."""
    return with_session(command, {**_OPTIONS, "server": ServerOption}, begin)


def begin(given: GlobalOptions) -> AnalyticsSession:
    """Returns the session that the global options ask for."""
    output = Output(given.output or "table")
    return AnalyticsSession(given.analytics, Session(given.server, output), output)
