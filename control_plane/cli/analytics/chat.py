"""`midcourse chat`."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from control_plane.cli.analytics.options import ModelOption, SessionOption
from control_plane.cli.analytics.session import AnalyticsSession, both_services_verb, chat_failure
from control_plane.cli.completion import complete_job
from control_plane.cli.exits import CommandError, ExitCode
from control_plane.cli.sending import duration

if TYPE_CHECKING:
    from analytics_service.client import ChatOptions, Client
    from control_plane.cli.analytics.views import View
    from midcourse.analytics.v1 import session_pb2


@both_services_verb
def chat(
    session: AnalyticsSession,
    question: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="QUESTION",
            help="The question, in quotes or not; by default what stdin has, and on a terminal a"
            " conversation.",
        ),
    ] = None,
    model: ModelOption = "",
    in_session: SessionOption = "",
    go_on: Annotated[
        bool, typer.Option("--continue", "-c", help="Go on with the session used last.")
    ] = False,
    jobs: Annotated[
        list[str] | None,
        typer.Option(
            "--job",
            "-j",
            metavar="JOB",
            help="Job that the question is about; repeatable. By default the model finds out.",
            autocompletion=complete_job,
        ),
    ] = None,
    follow_successor: Annotated[
        bool | None,
        typer.Option(
            "--follow-successor/--no-follow-successor",
            help="Take a retired model's successor instead of being refused.",
        ),
    ] = None,
    max_output_tokens: Annotated[
        int | None,
        typer.Option(
            "--max-output-tokens",
            min=1,
            help="Most tokens of one answer, reasoning included; by default the service's choice.",
        ),
    ] = None,
    temperature: Annotated[
        float | None,
        typer.Option("--temperature", min=0.0, help="Sampling temperature; by default none."),
    ] = None,
    timeout: Annotated[
        float | None,
        typer.Option(
            "--timeout",
            parser=duration,
            metavar="DURATION",
            help="How long an answer may take; by default 10m.",
        ),
    ] = None,
    quiet: Annotated[
        bool,
        typer.Option("--quiet", "-q", help="Nothing but the answer: no model, tools, costs."),
    ] = False,
) -> None:
    """Ask about training runs.

    With a question, or where stdin is no terminal, one answer: its text on stdout, the rest on
    stderr. Else a conversation; /help there lists its commands.
    """
    if in_session and go_on:
        raise typer.BadParameter("--continue is the session used last; give it or --session")
    options: ChatOptions = {
        "model": model,
        "jobs": jobs or [],
        "follow_successor": follow_successor,
        "max_output_tokens": max_output_tokens or 0,
        "temperature": temperature,
    }
    if timeout is not None:
        options["timeout"] = timeout
    asked = _question(session, question or [])
    with session.connect() as analytics:
        options["session"] = _last_session(analytics) if go_on else in_session
        if asked is not None:
            _ask(session, analytics, asked, options, quiet=quiet)
        else:
            from control_plane.cli.analytics.conversation import Conversation

            Conversation(session, analytics, options, quiet=quiet).run()


def _question(session: AnalyticsSession, given: list[str]) -> str | None:
    """Returns the one question to answer; None for a conversation."""
    if given and given != ["-"]:
        question = " ".join(given)
    elif given or not sys.stdin.isatty():
        try:
            question = sys.stdin.read()
        except UnicodeDecodeError:
            raise typer.BadParameter("the question is no UTF-8 text") from None
    elif not session.output.is_live:
        raise typer.BadParameter(
            "a conversation needs a terminal and its tables; give a QUESTION, or write it to stdin"
        )
    else:
        return None
    if not question.strip():
        raise typer.BadParameter("the question is empty")
    return question.strip()


def _last_session(analytics: Client) -> str:
    last = next(analytics.list_sessions(page_size=1), None)
    if last is None:
        raise CommandError(
            "there is no session to go on with; leave --continue out to begin one",
            ExitCode.NOT_FOUND,
        )
    return last.name


def _ask(
    session: AnalyticsSession,
    analytics: Client,
    question: str,
    options: ChatOptions,
    *,
    quiet: bool,
) -> None:
    from analytics_service.client import MidcourseError

    chat = analytics.chat(question, **options)
    try:
        with chat, _view(session, quiet=quiet) as view:
            for event in chat:
                view.show(event)
    except MidcourseError as error:
        raise chat_failure(error, chat) from error
    _judge(chat.message)


def _view(session: AnalyticsSession, *, quiet: bool) -> View:
    from control_plane.cli.analytics.views import JsonView, PlainView

    if session.output.is_json:
        return JsonView(session.output)
    if session.output.is_live:
        from control_plane.cli.analytics.terminal import TerminalView

        return TerminalView(session.output.console(), quiet=quiet)
    return PlainView(quiet=quiet)


def _judge(message: session_pb2.Message | None) -> None:
    """Ends the command otherwise than well where somebody else has stopped the answer."""
    from control_plane.cli.analytics.words import message_state
    from midcourse.analytics.v1 import session_pb2

    whole = (session_pb2.MESSAGE_STATE_COMPLETE, session_pb2.MESSAGE_STATE_TRUNCATED)
    if message is not None and message.state not in whole:
        raise CommandError(f"the answer was {message_state(message.state)}", ExitCode.FAILURE)
