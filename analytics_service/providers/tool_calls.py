"""Tool calls put together from the pieces in which models stream them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NoReturn

from analytics_service.providers.base import ToolRequest

_SHOWN = 200
"""Characters of unreadable arguments that an error shows."""


@dataclass(slots=True)
class _Call:
    call_id: str
    name: str = ""
    pieces: list[str] = field(default_factory=list)


class ToolCallAssembler:
    """Collects the pieces of the calls of one answer, in whatever order they come.

    A piece belongs to the call with its id. Endpoints that send the id only once (OpenAI) or
    never tell calls apart by index; others give every call index 0 and an id of its own.
    """

    def __init__(self) -> None:
        self._calls: list[_Call] = []
        self._by_id: dict[str, _Call] = {}
        self._by_index: dict[int | None, _Call] = {}

    def add(
        self,
        *,
        call_id: str | None = None,
        index: int | None = None,
        name: str | None = None,
        arguments: str | None = None,
    ) -> None:
        """Takes one piece.

        Args:
            call_id: Id of the call, where the piece has it.
            index: Place of the call among those of the answer, where the piece has it.
            name: Name of the tool, or a part of it.
            arguments: The next characters of the arguments' JSON.
        """
        call = self._find(call_id, index, name)
        if name and not call.pieces and name != call.name:
            call.name += name
        if arguments:
            call.pieces.append(arguments)

    def _find(self, call_id: str | None, index: int | None, name: str | None) -> _Call:
        known = self._by_index.get(index)
        if call_id:
            call = self._by_id.get(call_id)
            if call is None and known is not None and not known.call_id:
                call = known  # begun before its id was told
                call.call_id = call_id
        else:
            call = known
            if call is not None and name and call.pieces and name != call.name:
                call = None  # another tool after the arguments of one: a new call
        if call is None:
            call = _Call(call_id or "")
            self._calls.append(call)
        if call.call_id:
            self._by_id[call.call_id] = call
        # A piece without id and index goes on with the call before it.
        self._by_index[index] = self._by_index[None] = call
        return call

    def requests(self) -> list[ToolRequest]:
        """Returns the calls so far, in the order in which they began."""
        return [
            tool_request(call.call_id or f"call_{number}", call.name, "".join(call.pieces))
            for number, call in enumerate(self._calls)
        ]


def tool_request(call_id: str, name: str, raw: str) -> ToolRequest:
    """Reads the arguments of a call; where that fails the request says why."""
    error = ""
    arguments: Mapping[str, Any] | None = None
    if not name:
        error = "the call names no tool"
    else:
        try:
            arguments = read_arguments(raw)
        except ValueError as unreadable:
            error = str(unreadable)
    return ToolRequest(call_id, name, arguments, raw, error)


def read_arguments(raw: str) -> Mapping[str, Any]:
    """Reads the arguments of a call, a JSON object; no text at all means no arguments.

    Raises:
        ValueError: It is not a JSON object, or one that can not be written as UTF-8.
    """
    if not raw.strip():
        return {}
    try:
        value = json.loads(raw, parse_constant=_refuse_constant)
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise ValueError(
            f"the arguments hold half a surrogate pair, which is no text: {_shown(raw)}"
        ) from None
    except RecursionError:
        raise ValueError(f"the arguments are nested too deep: {_shown(raw)}") from None
    except ValueError as error:
        raise ValueError(f"the arguments are not JSON ({error}): {_shown(raw)}") from None
    if not isinstance(value, dict):
        raise ValueError(  # noqa: TRY004 - wrong in what it says, like all the others
            f"the arguments must be a JSON object, got {_shown(raw)}"
        )
    return value


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON value")


def _shown(raw: str) -> str:
    return raw if len(raw) <= _SHOWN else f"{raw[:_SHOWN]}… ({len(raw)} characters)"
