"""Answers from every endpoint that speaks OpenAI's chat completions."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from typing import Any

import openai
from openai.types.chat import ChatCompletionChunk

from analytics_service.providers import sdk, wire
from analytics_service.providers.answer import Answer, told
from analytics_service.providers.base import (
    Finished,
    FinishReason,
    ProviderEvent,
    ProviderRequest,
    UsageReport,
)
from analytics_service.providers.faults import Endpoint
from analytics_service.providers.openai_client import client_of
from analytics_service.providers.openai_wire import (
    FINISH_REASONS,
    TokenLimit,
    arguments_of,
    tokens_of,
)
from analytics_service.providers.tool_calls import ToolCallAssembler


class OpenAIProvider:
    """Streams chat completions with the official SDK."""

    def __init__(
        self,
        endpoint: Endpoint,
        *,
        base_url: str | None,
        token_limit: TokenLimit,
    ) -> None:
        """Builds the client, which takes some 20 ms; it connects with the first call.

        Args:
            endpoint: Who is called, with the key.
            base_url: Where it is; None: OpenAI itself.
            token_limit: Which parameter limits the answer.
        """
        self._endpoint = endpoint
        self._token_limit = token_limit
        self._client = client_of(endpoint, base_url)

    def stream(self, request: ProviderRequest) -> AsyncGenerator[ProviderEvent, None]:
        """See `Provider.stream`."""
        return told(
            lambda: self._client.chat.completions.create(
                model=request.model,
                messages=(),
                stream=True,
                # The whole body: as arguments the SDK would go through all that tools take,
                # schema by schema, which is several milliseconds of work and changes nothing.
                extra_body=arguments_of(request, self._token_limit),
                timeout=sdk.timeout(request.idle_timeout),
            ),
            _Answer(self._endpoint),
            openai.OpenAIError,
            request.idle_timeout,
        )

    async def close(self) -> None:
        """See `Provider.close`."""
        await self._client.close()


class _Answer(Answer):
    """One answer, as its chunks tell it."""

    def __init__(self, endpoint: Endpoint) -> None:
        super().__init__(endpoint)
        self._tools = ToolCallAssembler()
        self._has_tools = False
        self._is_refused = False
        self._finish = ""

    @property
    def has_ended(self) -> bool:
        """See `Answer`: whether the reason is told why it ended."""
        return bool(self._finish)

    def events(self, event: Any) -> list[ProviderEvent]:
        """See `Answer`."""
        if not isinstance(event, ChatCompletionChunk):
            raise self._broken(f"{type(event).__name__} where a chunk was expected")
        # The SDK does not check what it decodes: any field may be missing or something else.
        events = self._serve(wire.string(event, "model"))
        for choice in wire.items(event, "choices"):
            delta = wire.field(choice, "delta")
            if wire.field(choice, "index") in (0, None):
                self._take_tool_calls(delta)
                events += self._said(self._take_text(delta))
                self._finish = wire.string(choice, "finish_reason") or self._finish
        if (tokens := tokens_of(event.usage)) is not None:
            events.append(UsageReport(tokens))
        return events

    def _take_text(self, delta: Any) -> str:
        refusal = wire.string(delta, "refusal")
        self._is_refused |= bool(refusal)
        return self._text.feed(wire.string(delta, "content") + refusal)

    def _take_tool_calls(self, delta: Any) -> None:
        for piece in wire.items(delta, "tool_calls"):
            function = wire.field(piece, "function")
            arguments = wire.field(function, "arguments")
            if arguments is not None and not isinstance(arguments, str):
                arguments = json.dumps(arguments)  # some endpoints send the object itself
            index = wire.field(piece, "index")
            self._has_tools = True
            self._tools.add(
                call_id=wire.string(piece, "id"),
                index=index if isinstance(index, int) else None,
                name=wire.string(function, "name"),
                arguments=arguments,
            )

    def rest(self) -> list[ProviderEvent]:
        """See `Answer`."""
        return [*self._said(self._text.rest()), *self._tools.requests()]

    def finish(self) -> Finished:
        """See `Answer`."""
        if not self._finish:
            raise self._broken("the answer ended without a finish reason")
        reason = FINISH_REASONS.get(self._finish)
        if reason is None:
            raise self._broken(f"the answer ended for an unknown reason: {self._finish!r}")
        if self._is_refused:
            reason = FinishReason.REFUSAL
        elif reason is FinishReason.STOP and self._has_tools:
            reason = FinishReason.TOOL_CALLS  # as some endpoints put it
        elif reason is FinishReason.TOOL_CALLS and not self._has_tools:
            raise self._broken("the answer ended in tool calls, but has none")
        return Finished(reason)
