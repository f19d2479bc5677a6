"""A session as it was: questions, answers, calls of tools."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from rich.console import RenderableType
from rich.text import Text

from control_plane.cli import printable
from control_plane.cli.analytics import notes, words
from control_plane.cli.analytics.terminal import markdown
from control_plane.cli.output import Output
from midcourse.analytics.v1 import session_pb2


def show(
    output: Output,
    session: session_pb2.Session,
    messages: Iterable[session_pb2.Message],
    now: float,
) -> None:
    """Prints a session: Markdown rendered on a terminal, else as it is."""
    title = Text(words.session_id(session.name), style="bold")
    if session.title:
        title.append(f"  {printable.line(session.title)}", style="default")
    output.show(title)
    rendered = output.is_live
    for message in messages:
        output.show("", *_message(message, now, rendered=rendered))
    output.show("", Text(f"{_costs(session)}", style="dim"))


def _costs(session: session_pb2.Session) -> str:
    cost = words.sum_cost(session.cost, session.unknown_cost_calls)
    return f"{words.plural(session.message_count, 'message')} · {cost}"


def _message(
    message: session_pb2.Message, now: float, *, rendered: bool
) -> Iterator[RenderableType]:
    yield _heading(message, now)
    for part in message.parts:
        match part.WhichOneof("kind"):
            case "text" if rendered and message.role == session_pb2.ROLE_ASSISTANT:
                yield markdown(printable.text(part.text))
            case "text":
                yield Text(printable.text(part.text).rstrip("\n"))
            case "tool_call":
                yield _note(notes.tool(part.tool_call))
            case "proposed_update":
                yield from map(_note, notes.proposal(part.proposed_update))
            case _:
                continue  # of a newer service
    if message.citations:
        yield Text(f"sources: {words.citations(message.citations)}", style="dim")
    if message.HasField("error"):
        yield Text(printable.line(message.error.message), style="yellow")


def _heading(message: session_pb2.Message, now: float) -> Text:
    age = words.age(message, "create_time", now)
    if message.role == session_pb2.ROLE_USER:
        return Text("you", style="bold cyan").append(f" · {age}", style="dim")
    heading = Text(words.model_id(message.model.used_model), style="bold green")
    facts = [age, words.sum_cost(message.cost, message.unknown_cost_calls)]
    if message.state != session_pb2.MESSAGE_STATE_COMPLETE:
        facts.append(words.message_state(message.state))
    return heading.append(f" · {' · '.join(facts)}", style="dim")


def _note(note: notes.Note) -> Text:
    return Text(note.text, style=note.style)
