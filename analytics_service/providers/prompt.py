"""A conversation made fit to be sent, whatever provider got its earlier parts: pure."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from analytics_service.providers.base import AssistantTurn, ToolRequest, ToolTurn, Turn, UserTurn

_NOT_IN_NAMES = re.compile(r"[^A-Za-z0-9_-]")


@dataclass(frozen=True, slots=True)
class Round:
    """What the model said, and what came of the tools that it called.

    Attributes:
        said: The model's turn.
        results: One for each of its tool requests, in their order.
    """

    said: AssistantTurn
    results: tuple[ToolTurn, ...] = ()


def normalized(turns: Sequence[Turn]) -> list[UserTurn | Round]:
    """Groups tool results with their calls; leaves out what is empty.

    Providers refuse a call without a result, an empty text, and each other's ids: by length, by
    characters, or because an id comes twice. So a call that has no result (its answer was
    stopped) gets one that says so, calls are numbered anew, in a form that all of them take, and
    the names of tools that a model made up lose their odd characters.

    Raises:
        ValueError: A tool turn belongs to no call of the assistant's turn before it.
    """
    grouped: list[UserTurn | Round] = []
    numbers = iter(range(1, 100_000))
    position = 0
    while position < len(turns):
        turn = turns[position]
        position += 1
        match turn:
            case UserTurn(text):
                if text.strip():
                    grouped.append(turn)
            case AssistantTurn(text, requests):
                results: dict[str, ToolTurn] = {}
                while position < len(turns) and isinstance(result := turns[position], ToolTurn):
                    results[result.call_id] = result
                    position += 1
                _check(requests, results)
                if text.strip() or requests:
                    grouped.append(_round(turn, results, numbers))
            case ToolTurn(call_id):
                raise ValueError(f"no assistant's turn before the result of tool call {call_id!r}")
    return grouped


def _check(requests: Sequence[ToolRequest], results: dict[str, ToolTurn]) -> None:
    strays = results.keys() - {request.call_id for request in requests}
    if strays:
        raise ValueError(f"results of tool calls that were not made: {sorted(strays)}")


def _round(turn: AssistantTurn, results: dict[str, ToolTurn], numbers: Iterator[int]) -> Round:
    ids = [f"call{next(numbers):05d}" for _ in turn.tool_requests]
    return Round(
        replace(
            turn,
            tool_requests=tuple(
                replace(request, call_id=call_id, name=_NOT_IN_NAMES.sub("_", request.name or "_"))
                for request, call_id in zip(turn.tool_requests, ids, strict=True)
            ),
        ),
        tuple(
            replace(results.get(request.call_id) or _without_result(request), call_id=call_id)
            for request, call_id in zip(turn.tool_requests, ids, strict=True)
        ),
    )


def _without_result(request: ToolRequest) -> ToolTurn:
    return ToolTurn(
        request.call_id, request.error or "The call was not carried out.", is_error=True
    )
