"""Answers from OpenAI by its Responses API, without which its newer models call no tools."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any

import openai

from analytics_service.providers import sdk, wire
from analytics_service.providers.answer import Answer, told
from analytics_service.providers.base import (
    Finished,
    FinishReason,
    ProviderError,
    ProviderEvent,
    ProviderRequest,
    UsageReport,
)
from analytics_service.providers.faults import Endpoint
from analytics_service.providers.openai_client import client_of
from analytics_service.providers.openai_responses_wire import (
    INCOMPLETE_REASONS,
    arguments_of,
    tokens_of,
)
from analytics_service.providers.tool_calls import tool_request


class OpenAIResponsesProvider:
    """Streams responses with the official SDK."""

    def __init__(self, endpoint: Endpoint, *, base_url: str | None) -> None:
        """Builds the client, which takes some 20 ms; it connects with the first call.

        Args:
            endpoint: Who is called, with the key.
            base_url: Where it is; None: OpenAI itself.
        """
        self._endpoint = endpoint
        self._client = client_of(endpoint, base_url)

    def stream(self, request: ProviderRequest) -> AsyncGenerator[ProviderEvent, None]:
        """See `Provider.stream`."""
        return told(
            # The SDK's way without its types. With them it goes through all that tools take, schema
            # by schema, which is milliseconds before the first token, and through some fifty kinds
            # of event for each delta; and yet it checks nothing.
            lambda: self._client.post(
                "/responses",
                body=arguments_of(request),
                cast_to=object,
                options={"timeout": sdk.timeout(request.idle_timeout)},
                stream=True,
                stream_cls=openai.AsyncStream[object],
            ),
            _Answer(self._endpoint),
            openai.OpenAIError,
            request.idle_timeout,
        )

    async def close(self) -> None:
        """See `Provider.close`."""
        await self._client.close()


class _FunctionCall:
    """A function_call item that is being written."""

    def __init__(self, item: Any) -> None:
        self._id = wire.string(item, "call_id")
        self._name = wire.string(item, "name")
        self.arguments = wire.string(item, "arguments")

    def request(self, item: Any) -> ProviderEvent:
        """The whole call, as its last event tells it, or else as those before have."""
        return tool_request(
            wire.string(item, "call_id") or self._id,
            wire.string(item, "name") or self._name,
            wire.string(item, "arguments") or self.arguments,
        )


class _FunctionCalls:
    """The calls that are being written."""

    def __init__(self) -> None:
        self._open: list[tuple[str, Any, _FunctionCall]] = []

    def __bool__(self) -> bool:
        return bool(self._open)

    def begin(self, item: Any, index: Any) -> None:
        """Takes the first event of a call."""
        self._open.append((wire.string(item, "id"), index, _FunctionCall(item)))

    def find(self, item_id: str, index: Any) -> _FunctionCall | None:
        """Finds a call by the id of its item; some endpoints change that, then by its place."""
        by_id = [call for known, _, call in self._open if known and known == item_id]
        by_index = [call for _, known, call in self._open if index is not None and known == index]
        return next(iter(by_id or by_index), None)

    def end(self, item: Any, index: Any) -> ProviderEvent:
        """Takes the last event of a call, which has it whole."""
        call = self.find(wire.string(item, "id"), index)
        self._open = [entry for entry in self._open if entry[2] is not call]
        return (call or _FunctionCall(item)).request(item)


class _Answer(Answer):
    """One answer, as its events tell it."""

    def __init__(self, endpoint: Endpoint) -> None:
        super().__init__(endpoint)
        self._calls = _FunctionCalls()
        self._has_tools = False
        self._is_refused = False
        self._end: Any = None

    @property
    def has_ended(self) -> bool:
        """See `Answer`: whether its last event has come."""
        return self._end is not None

    def events(self, event: Any) -> list[ProviderEvent]:
        """See `Answer`."""
        served = self._serve(wire.string(wire.field(event, "response"), "model"))
        match wire.string(event, "type"):
            case "response.output_text.delta":
                return self._said(self._text.feed(wire.string(event, "delta")))
            case "response.refusal.delta":
                self._is_refused = True
                return self._said(self._text.feed(wire.string(event, "delta")))
            case "response.output_item.added" | "response.output_item.done":
                return self._take_item(event)
            case "response.function_call_arguments.delta":
                if (call := self._call_of(event)) is not None:
                    call.arguments += wire.string(event, "delta")
            case "response.function_call_arguments.done":
                if (call := self._call_of(event)) is not None:
                    call.arguments = wire.string(event, "arguments") or call.arguments
            case "response.completed" | "response.incomplete" | "response.failed" | "error":
                if self._end is None:
                    self._end = event
                tokens = tokens_of(wire.field(wire.field(event, "response"), "usage"))
                usage = [] if tokens is None else [UsageReport(tokens)]
                return [*served, *self._said(self._text.rest()), *usage]
            case _:
                pass
        return served

    def _take_item(self, event: Any) -> list[ProviderEvent]:
        item, index = wire.field(event, "item"), wire.field(event, "output_index")
        if wire.string(item, "type") != "function_call":
            return []
        self._has_tools = True
        if wire.string(event, "type") == "response.output_item.done":
            return [self._calls.end(item, index)]
        self._calls.begin(item, index)
        return []

    def _call_of(self, event: Any) -> _FunctionCall | None:
        return self._calls.find(wire.string(event, "item_id"), wire.field(event, "output_index"))

    def finish(self) -> Finished:
        """See `Answer`."""
        response = wire.field(self._end, "response")
        match wire.string(self._end, "type"):
            case "response.completed":
                return Finished(self._reason())
            case "response.incomplete":
                why = wire.string(wire.field(response, "incomplete_details"), "reason")
                reason = INCOMPLETE_REASONS.get(why)
                if reason is None:
                    raise self._broken(f"the answer ended for an unknown reason: {why!r}")
                return Finished(FinishReason.REFUSAL if self._is_refused else reason)
            case "response.failed":
                raise self._failed(wire.field(response, "error"))
            case "error":
                raise self._failed(self._end)
            case _:
                raise self._broken("the answer ended without response.completed")

    def _reason(self) -> FinishReason:
        if self._calls:
            raise self._broken("the answer ended within a tool call")
        if self._is_refused:
            return FinishReason.REFUSAL
        return FinishReason.TOOL_CALLS if self._has_tools else FinishReason.STOP

    def _failed(self, error: Any) -> ProviderError:
        names = ("code", "type", "message")
        return self.endpoint.refusal({name: wire.field(error, name) for name in names})
