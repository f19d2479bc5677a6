"""What the fake provider can be told to answer; see `tests.support.fake_provider`."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias


@dataclass(frozen=True)
class Text:
    deltas: tuple[str, ...]


@dataclass(frozen=True)
class ToolCall:
    name: str
    arguments: str
    call_id: str
    pieces: int = 3

    def split(self) -> list[str]:
        size = max(1, -(-len(self.arguments) // self.pieces))
        return [self.arguments[i : i + size] for i in range(0, len(self.arguments), size)]


@dataclass(frozen=True)
class ToolCalls:
    calls: tuple[ToolCall, ...]


@dataclass(frozen=True)
class Gate:
    event: asyncio.Event


@dataclass(frozen=True)
class Stall:
    pass


@dataclass(frozen=True)
class Pause:
    seconds: float


@dataclass(frozen=True)
class Finish:
    reason: str


@dataclass(frozen=True)
class Cut:
    pass


@dataclass(frozen=True)
class Event:
    data: str
    name: str | None = None


@dataclass(frozen=True)
class ErrorEvent:
    kind: str
    message: str


Part: TypeAlias = (
    Text | ToolCall | ToolCalls | Gate | Stall | Pause | Finish | Cut | Event | ErrorEvent
)


@dataclass(frozen=True)
class Usage:
    """Tokens, by kind as in `TokenUsage`: no kind is part of another, but reasoning of output.

    With `reasoning_beside` the OpenAI format counts reasoning outside the completion, as xAI
    does. None: the provider leaves it out.
    """

    input: int = 10
    output: int = 5
    cache_read: int | None = None
    cache_write: int | None = None
    reasoning: int | None = None
    reasoning_beside: bool = False


DEFAULT_USAGE = Usage()


@dataclass(frozen=True)
class Reply:
    parts: tuple[Part, ...] = ()
    usage: Usage | None = DEFAULT_USAGE
    finish: str | None = "auto"
    model: str | None = None
    """The model that serves; None: the one that was asked for."""


@dataclass(frozen=True)
class Failure:
    status: int
    kind: str = "error"
    message: str = "no luck"
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes | None = None


def text(*deltas: str) -> Text:
    return Text(deltas)


def tool_call(
    name: str,
    arguments: Mapping[str, Any] | str = "{}",
    call_id: str = "call_a",
    pieces: int = 3,
) -> ToolCall:
    raw = arguments if isinstance(arguments, str) else json.dumps(arguments)
    return ToolCall(name, raw, call_id, pieces)


def interleaved(*calls: ToolCall) -> ToolCalls:
    return ToolCalls(calls)


def gate(event: asyncio.Event) -> Gate:
    return Gate(event)


def stall() -> Stall:
    return Stall()


def pause(seconds: float) -> Pause:
    return Pause(seconds)


def finish(reason: str) -> Finish:
    return Finish(reason)


def cut() -> Cut:
    return Cut()


def garbage() -> Event:
    return Event('{"choices": [{"delta": ', "content_block_delta")


def event(data: Mapping[str, Any] | list[Any] | str, name: str | None = None) -> Event:
    return Event(data if isinstance(data, str) else json.dumps(data), name)


def error_event(kind: str, message: str = "no luck") -> ErrorEvent:
    return ErrorEvent(kind, message)


def paced(deltas: int = 20, interval: float = 0.0, word: str = "word ") -> Reply:
    """An answer of so many deltas, so many seconds apart."""
    parts: list[Part] = []
    for _ in range(deltas):
        if interval:
            parts.append(Pause(interval))
        parts.append(Text((word,)))
    return Reply(tuple(parts), Usage(input=100, output=deltas))
