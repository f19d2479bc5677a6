"""What is told about an answer beside its text: the model, calls of tools, sources, costs. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from control_plane.cli import format as fmt
from control_plane.cli import printable
from control_plane.cli.analytics import tool_words, words
from midcourse.analytics.v1 import analytics_pb2, session_pb2, usage_pb2

TOOL: Final = "⚙"
_QUIET: Final = "dim"
_WARNING: Final = "yellow"


@dataclass(frozen=True, slots=True)
class Note:
    """One line.

    Attributes:
        text: The line, fit for a terminal.
        style: How to show it where there are colours, in rich's words.
    """

    text: str
    style: str = _QUIET


@dataclass(slots=True)
class Notes:
    """Makes notes of the events of one answer.

    Attributes:
        activity: What the answer waits for at the moment.
    """

    activity: str = "waiting for the service"
    _usage: list[usage_pb2.UsageRecord] = field(default_factory=list)
    _model: str = ""
    _difference: str = ""
    _is_over: bool = False

    def feed(self, event: analytics_pb2.ChatResponse) -> Iterator[Note]:
        """Yields the notes that an event is worth."""
        match event.WhichOneof("event"):
            case "started":
                yield from self._started(event.started)
            case "tool_call":
                self.activity = f"{TOOL} {tool_words.call(event.tool_call)}"
            case "tool_result":
                self.activity = f"{self._model} reads"
                yield tool(event.tool_result)
            case "proposed_update":
                yield from proposal(event.proposed_update)
            case "usage":
                self._usage.append(event.usage)
            case "retry":
                yield from self._retry(event.retry)
            case "done":
                self._is_over = True
                yield from self._done(event.done.message)
            case _:
                return  # text is no note; the error that ends a stream comes as its status too

    def ended(self) -> Iterator[Note]:
        """Yields what is known of the costs of an answer that did not come to its end."""
        if not self._is_over and self._usage:
            yield Note(self._footer(words.calls_cost(self._usage)))

    def _started(self, started: analytics_pb2.ChatStarted) -> Iterator[Note]:
        chosen = started.model
        self._model = words.model_id(chosen.used_model)
        self._difference = chosen.difference
        self.activity = f"{self._model} thinks"
        yield Note(f"{words.choice(chosen)} · session {words.session_id(started.session)}")
        for text in (chosen.difference, chosen.notice):
            if text:
                yield Note(printable.line(text), _WARNING)
        if started.replayed:
            yield Note("this is an earlier answer to the same request; nothing is paid again")

    def _retry(self, retry: analytics_pb2.ChatRetry) -> Iterator[Note]:
        used = words.model_id(retry.model.used_model)
        again = "again" if used in (self._model, fmt.UNKNOWN) else f"with {used}"
        self._model = self._model if used == fmt.UNKNOWN else used
        text = f"{printable.line(retry.error)}; trying {again} in {fmt.span(retry.delay)}"
        yield Note(text, _WARNING)

    def _done(self, message: session_pb2.Message) -> Iterator[Note]:
        served = message.model.served_model
        if message.model.difference not in ("", self._difference) and served:
            yield Note(printable.line(message.model.difference), _WARNING)
        if message.state == session_pb2.MESSAGE_STATE_TRUNCATED:
            yield Note(
                "cut at the limit of its length; --max-output-tokens makes it longer", _WARNING
            )
        elif message.state != session_pb2.MESSAGE_STATE_COMPLETE:
            yield Note(f"the answer is {words.message_state(message.state)}", _WARNING)
        if message.citations:
            yield Note(f"sources: {words.citations(message.citations)}")
        cost = words.calls_cost(self._usage)
        if not self._usage:
            cost = words.sum_cost(message.cost, message.unknown_cost_calls)
        yield Note(self._footer(cost, message))

    def _footer(self, cost: str, message: session_pb2.Message | None = None) -> str:
        parts = [self._model or fmt.UNKNOWN]
        if message is not None and message.model.served_model:
            served = printable.line(message.model.served_model)
            parts = [self._model if served == self._model else f"{self._model} (served {served})"]
        if self._usage:
            parts.append(words.tokens(words.total_tokens(self._usage)))
        parts.append(cost)
        if message is not None and message.HasField("create_time") and message.HasField("end_time"):
            took = message.end_time.ToDatetime() - message.create_time.ToDatetime()
            parts.append(fmt.span(max(0.0, took.total_seconds())))
        return " · ".join(parts)


def tool(made: session_pb2.ToolCall) -> Note:
    """Returns the note about a call of a tool."""
    return Note(f"{TOOL} {tool_words.line(made)}", _WARNING if made.error else _QUIET)


def proposal(proposed: session_pb2.ProposedUpdate) -> Iterator[Note]:
    """Yields the notes about a drafted change."""
    first, *more = words.proposal(proposed)
    yield Note(f"proposed: {first}", "bold")
    style = _WARNING if proposed.HasField("error") else _QUIET
    for line in more:
        yield Note(f"  {line}", style)
