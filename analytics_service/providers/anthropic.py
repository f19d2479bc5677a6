"""Answers from Anthropic."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Mapping
from typing import Any

import anthropic

from analytics_service.providers import sdk, wire
from analytics_service.providers.answer import Answer, told
from analytics_service.providers.anthropic_wire import FINISH_REASONS, arguments_of, tokens_of
from analytics_service.providers.base import (
    Finished,
    FinishReason,
    ProviderEvent,
    ProviderRequest,
    UsageReport,
)
from analytics_service.providers.faults import Endpoint
from analytics_service.providers.tool_calls import tool_request
from analytics_service.usage.tokens import UNKNOWN


class AnthropicProvider:
    """Streams messages with the official SDK."""

    def __init__(self, endpoint: Endpoint, *, base_url: str | None) -> None:
        """Builds the client, which takes some 20 ms; it connects with the first call.

        Args:
            endpoint: Who is called, with the key.
            base_url: Where it is; None: Anthropic itself.
        """
        self._endpoint = endpoint
        key = endpoint.key or sdk.NO_KEY
        # What the environment says of Anthropic is for Anthropic and nobody else.
        foreign = base_url is not None
        self._client = anthropic.AsyncAnthropic(
            api_key=key,
            base_url=base_url,
            max_retries=0,  # an attempt that is not on record may be billed unseen
            default_headers=sdk.own_headers(key, "ANTHROPIC_CUSTOM_HEADERS", anthropic.Omit())
            if foreign
            else None,
        )

    def stream(self, request: ProviderRequest) -> AsyncGenerator[ProviderEvent, None]:
        """See `Provider.stream`."""
        return told(
            lambda: self._client.messages.create(
                **arguments_of(request), timeout=sdk.timeout(request.idle_timeout)
            ),
            _Answer(self._endpoint),
            anthropic.AnthropicError,
            request.idle_timeout,
        )

    async def close(self) -> None:
        """See `Provider.close`."""
        await self._client.close()


class _ToolUse:
    """A tool_use block that is being written."""

    def __init__(self, block: Any) -> None:
        self._id = wire.string(block, "id")
        self._name = wire.string(block, "name")
        self._input = wire.field(block, "input")
        self.pieces: list[str] = []

    def request(self) -> ProviderEvent:
        raw = "".join(self.pieces)
        if not raw and isinstance(self._input, Mapping) and self._input:
            raw = json.dumps(self._input)  # it came whole
        return tool_request(self._id, self._name, raw)


class _Answer(Answer):
    """One answer, as its events tell it."""

    def __init__(self, endpoint: Endpoint) -> None:
        super().__init__(endpoint)
        self._tools: dict[Any, _ToolUse] = {}
        self._has_tools = False
        self._tokens = UNKNOWN
        self._stop_reason = ""
        self._has_stopped = False

    def events(self, event: Any) -> list[ProviderEvent]:
        """See `Answer`."""
        # The SDK gives events of a kind that it does not know the class of another.
        match wire.string(event, "type"):
            case "message_start":
                message = wire.field(event, "message")
                served = self._serve(wire.string(message, "model"))
                return [*served, *self._count(wire.field(message, "usage"))]
            case "content_block_start":
                return self._start(wire.field(event, "index"), wire.field(event, "content_block"))
            case "content_block_delta":
                return self._delta(wire.field(event, "index"), wire.field(event, "delta"))
            case "content_block_stop":
                tool = self._tools.pop(wire.field(event, "index"), None)
                return [tool.request()] if tool is not None else self._said(self._text.rest())
            case "message_delta":
                delta = wire.field(event, "delta")
                self._stop_reason = wire.string(delta, "stop_reason") or self._stop_reason
                return self._count(wire.field(event, "usage"))
            case "message_stop":
                self._has_stopped = True
            case _:
                pass
        return []

    def _count(self, usage: Any) -> list[ProviderEvent]:
        before = self._tokens
        self._tokens = tokens_of(usage, before)
        return [UsageReport(self._tokens)] if self._tokens != before else []

    def _start(self, index: Any, block: Any) -> list[ProviderEvent]:
        if wire.string(block, "type") == "tool_use":
            self._has_tools = True
            self._tools[index] = _ToolUse(block)
            return []
        return self._said(self._text.feed(wire.string(block, "text")))

    def _delta(self, index: Any, delta: Any) -> list[ProviderEvent]:
        if wire.string(delta, "type") == "input_json_delta":
            tool = self._tools.get(index)
            if tool is not None:
                tool.pieces.append(wire.string(delta, "partial_json"))
            return []
        return self._said(self._text.feed(wire.string(delta, "text")))

    @property
    def has_ended(self) -> bool:
        """See `Answer`: its reason to stop comes with the last counts."""
        return bool(self._stop_reason)

    def finish(self) -> Finished:
        """See `Answer`."""
        if not self._has_stopped and not self.has_ended:
            raise self._broken("the answer ended without a reason to stop")
        if self._tools:
            raise self._broken("the answer ended within a tool call")
        reason = FINISH_REASONS.get(self._stop_reason)
        if reason is None:
            raise self._broken(f"the answer ended for an unknown reason: {self._stop_reason!r}")
        if reason is FinishReason.TOOL_CALLS and not self._has_tools:
            raise self._broken("the answer ended in tool calls, but has none")
        return Finished(reason)
