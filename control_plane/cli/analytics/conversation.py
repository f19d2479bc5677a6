"""The conversation of `midcourse chat`: questions, answers, and commands that begin with /."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from rich.text import Text

from analytics_service.client import MidcourseError
from control_plane.cli import printable
from control_plane.cli.analytics import tables, words
from control_plane.cli.analytics.apply import apply
from control_plane.cli.analytics.prompt import history_file, line_editing
from control_plane.cli.analytics.session import AnalyticsSession, chat_failure
from control_plane.cli.analytics.terminal import TerminalView
from control_plane.cli.errors import ANALYTICS_HINT, from_client, report
from control_plane.cli.exits import CommandError, ExitCode

if TYPE_CHECKING:
    from analytics_service.client import ChatOptions, Client
    from midcourse.analytics.v1 import model_pb2, session_pb2

_PROMPT: Final = "> "


class _Leave(Exception):  # noqa: N818 - no error: the person has had enough
    """Ends the conversation."""


@dataclass(frozen=True, slots=True)
class _Command:
    """A command.

    Attributes:
        usage: How to write it.
        help: What it does.
        run: Does it, with what stands behind its name.
    """

    usage: str
    help: str
    run: Callable[[str], None]


class Conversation:
    """Asks what a person types, in one session."""

    def __init__(
        self, around: AnalyticsSession, analytics: Client, options: ChatOptions, *, quiet: bool
    ) -> None:
        """Prepares a conversation.

        Args:
            around: The run of the verb.
            analytics: The analytics service.
            options: Of every question; the first answer names the session, if none is given.
            quiet: Show no notes with the answers.
        """
        self._around = around
        self._analytics = analytics
        self._options = options
        self._quiet = quiet
        self._console = around.output.console()
        self._model = ""
        self._proposals: list[session_pb2.ProposedUpdate] = []
        self._commands = {
            "/model": _Command("/model [MODEL]", "list the models, or switch", self._switch_model),
            "/cost": _Command("/cost", "what this session has cost", self._show_cost),
            "/apply": _Command(
                "/apply [N]", "submit a proposed change, the newest or number N", self._apply
            ),
            "/help": _Command("/help", "these commands", self._help),
            "/quit": _Command("/quit", "leave, as Ctrl-D does", self._quit),
        }

    def run(self) -> None:
        """Answers until the person leaves.

        Raises:
            CommandError: There is no such session, or nobody answers at the start.
        """
        self._greet()
        with line_editing(history_file()) as problems:
            self._read_all()
        for problem in problems:
            self._dim(problem)

    def _greet(self) -> None:
        """Says where this is, which also shows that somebody answers there."""
        if name := self._options.get("session"):
            session = self._analytics.get_session(name)
            self._model = session.model_id
            title = printable.line(session.title) or "no title"
            self._dim(
                f"session {words.session_id(session.name)}: {title},"
                f" {words.plural(session.message_count, 'message')}"
            )
        else:
            self._analytics.list_models(available_only=True)
        self._dim(f"{self._analytics.address} · /help lists commands, Ctrl-D leaves")

    def _read_all(self) -> None:
        while True:
            try:
                self._take(input(_PROMPT).strip())
            except KeyboardInterrupt:
                self._console.print()  # the line is given up
                self._dim("Ctrl-D or /quit leaves")
            except EOFError:
                self._console.print()
                return
            except _Leave:
                return
            except UnicodeError:
                report("that is no UTF-8 text; nothing was asked")
            except CommandError as error:
                report(error.message)
            except MidcourseError as error:
                report(from_client(error, ANALYTICS_HINT).message)

    def _take(self, typed: str) -> None:
        if typed.startswith("/"):
            name, _, rest = typed.partition(" ")
            self._command(name).run(rest.strip())
        elif typed:
            self._ask(typed)

    def _command(self, name: str) -> _Command:
        if name in self._commands:
            return self._commands[name]
        close = difflib.get_close_matches(name, self._commands, n=1, cutoff=0.5)
        hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(self._commands)}"
        raise CommandError(f"there is no command {name}; {hint}", ExitCode.USAGE)

    # Questions

    def _ask(self, question: str) -> None:
        chat = self._analytics.chat(question, **self._options)
        try:
            with chat, TerminalView(self._console, quiet=self._quiet) as view:
                for event in chat:
                    view.show(event)
        except MidcourseError as error:
            raise chat_failure(error, chat) from error
        except KeyboardInterrupt:
            self._dim("stopped; what there is of the answer is kept")
        finally:
            self._console.print()
            if chat.started is not None:
                self._options["session"] = chat.started.session
                self._options["model"] = ""  # the session has it now
                self._model = chat.started.model.used_model
            if chat.proposed_updates:
                self._proposals = chat.proposed_updates
        if chat.proposed_updates and not chat.cancelled:
            many = len(self._proposals) > 1
            which = (
                f"/apply 1 to /apply {len(self._proposals)} submit" if many else "/apply submits"
            )
            self._dim(f"{which} what is proposed; you are asked once more")

    # Commands

    def _switch_model(self, wanted: str) -> None:
        if not wanted:
            listing = self._analytics.list_models()
            self._console.print(tables.models(listing, self._options["model"] or self._model))
            return
        session = self._options.get("session")
        if session:
            changed = self._analytics.update_session(session, model=wanted)
            self._options["model"], self._model = "", changed.model_id
        else:
            self._model = self._options["model"] = self._known(wanted).model_id
        self._dim(f"{printable.line(self._model)} answers from now on")

    def _known(self, wanted: str) -> model_pb2.Model:
        """Returns the model of an id or alias, before there is a session to keep it.

        Raises:
            CommandError: There is none, or it can not be chosen.
        """
        by_name = {
            name.casefold(): model
            for model in self._analytics.list_models()
            for name in (model.model_id, *model.aliases)
        }
        model = by_name.get(wanted.casefold())
        if model is None:
            close = difflib.get_close_matches(wanted.casefold(), by_name, n=1)
            hint = f"did you mean {by_name[close[0]].model_id}?" if close else "/model lists them"
            raise CommandError(f"there is no model {wanted!r}; {hint}", ExitCode.NOT_FOUND)
        if not model.available and not self._options.get("follow_successor"):
            raise CommandError(
                f"{model.model_id} can not be chosen: {model.unavailable_reason}", ExitCode.REFUSED
            )
        return model

    def _show_cost(self, _: str) -> None:
        name = self._options.get("session")
        if not name:
            self._dim("nothing yet: nothing was asked")
            return
        used = self._analytics.get_usage("model", session=name)
        self._console.print(tables.usage("model", used.summaries, used.total))

    def _apply(self, which: str) -> None:
        if not self._proposals and (name := self._options.get("session")):
            for message in self._analytics.list_messages(name):
                self._proposals = proposals_of(message) or self._proposals
        if not self._proposals:
            raise CommandError(
                "nothing is proposed; ask for a change of a running job first", ExitCode.USAGE
            )
        if which and not (which.isdecimal() and 1 <= int(which) <= len(self._proposals)):
            raise CommandError(
                f"got /apply {which}, allowed: a number from 1 to {len(self._proposals)}",
                ExitCode.USAGE,
            )
        index = int(which) - 1 if which else len(self._proposals) - 1
        apply(self._proposals[index], self._around.plane, self._console, _confirm)

    def _help(self, _: str) -> None:
        width = max(len(command.usage) for command in self._commands.values())
        for command in self._commands.values():
            self._console.print(f"  {command.usage:<{width}}  {command.help}")
        self._dim("  Ctrl-C stops an answer. Everything else that is typed is asked.")

    def _quit(self, _: str) -> None:
        raise _Leave

    def _dim(self, text: str) -> None:
        self._console.print(Text(text, style="dim"))


def proposals_of(message: session_pb2.Message) -> list[session_pb2.ProposedUpdate]:
    """Returns the changes that a message drafts."""
    parts = (part for part in message.parts if part.WhichOneof("kind") == "proposed_update")
    return [part.proposed_update for part in parts]


def _confirm(question: str) -> bool:
    """Asks; only a yes is one."""
    try:
        return input(f"{question} [y/N] ").strip().lower() in ("y", "yes")
    except EOFError:
        return False
