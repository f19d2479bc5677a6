"""OpenAI's chat completions, and what many other endpoints make of them: pure."""

from __future__ import annotations

import json
from typing import Any, Literal, TypeAlias

from analytics_service.providers.base import FinishReason, ProviderRequest, UserTurn
from analytics_service.providers.prompt import Round, normalized
from analytics_service.providers.wire import count, field
from analytics_service.usage.tokens import TokenUsage

TokenLimit: TypeAlias = Literal["max_completion_tokens", "max_tokens"]
"""The parameter that limits an answer. The first includes reasoning and is the only one that
OpenAI's reasoning models take; many other endpoints know only the second."""

FINISH_REASONS = {
    "stop": FinishReason.STOP,
    "length": FinishReason.LENGTH,
    "tool_calls": FinishReason.TOOL_CALLS,
    "function_call": FinishReason.TOOL_CALLS,
    "content_filter": FinishReason.REFUSAL,
}


def arguments_of(request: ProviderRequest, token_limit: TokenLimit) -> dict[str, Any]:
    """The body of a request.

    Raises:
        ValueError: The turns do not fit together.
    """
    arguments: dict[str, Any] = {
        "model": request.model,
        "messages": messages_of(request),
        token_limit: request.max_output_tokens,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    if request.tools:
        arguments["tools"] = [
            {
                "type": "function",
                "function": {
                    "name": tool.name,
                    "description": tool.description,
                    "parameters": dict(tool.parameters),
                },
            }
            for tool in request.tools
        ]
    if request.temperature is not None:
        arguments["temperature"] = request.temperature
    return arguments


def messages_of(request: ProviderRequest) -> list[dict[str, Any]]:
    """The conversation as messages.

    Raises:
        ValueError: The turns do not fit together.
    """
    messages: list[dict[str, Any]] = []
    if request.system.strip():
        messages.append({"role": "system", "content": request.system})
    for turn in normalized(request.turns):
        match turn:
            case UserTurn(text):
                messages.append({"role": "user", "content": text})
            case Round(said, results):
                message: dict[str, Any] = {"role": "assistant", "content": said.text or None}
                if said.tool_requests:
                    message["tool_calls"] = [
                        {
                            "id": call.call_id,
                            "type": "function",
                            "function": {
                                "name": call.name,
                                "arguments": json.dumps(call.arguments or {}),
                            },
                        }
                        for call in said.tool_requests
                    ]
                messages.append(message)
                messages += [
                    {"role": "tool", "tool_call_id": result.call_id, "content": result.content}
                    for result in results
                ]
    return messages


def tokens_of(usage: object) -> TokenUsage | None:
    """Reads a `usage` object; None: it says nothing."""
    prompt_details = field(usage, "prompt_tokens_details")
    completion_details = field(usage, "completion_tokens_details")
    return tokens_by_kind(
        prompt=count(usage, "prompt_tokens"),
        completion=count(usage, "completion_tokens"),
        total=count(usage, "total_tokens"),
        cached=count(prompt_details, "cached_tokens"),
        written=count(prompt_details, "cache_write_tokens"),
        reasoning=count(completion_details, "reasoning_tokens"),
    )


def tokens_by_kind(
    *,
    prompt: int | None,
    completion: int | None,
    total: int | None,
    cached: int | None,
    written: int | None,
    reasoning: int | None,
) -> TokenUsage | None:
    """Takes counts apart that include each other; None: they say nothing.

    OpenAI counts reasoning among the completion's tokens, others beside them. Which it is shows
    in the total; where that is missing, more reasoning than completion can only lie beside it.

    Args:
        prompt: Tokens of the prompt, those of the cache included.
        completion: Tokens of the answer, with or without reasoning.
        total: Tokens of both and of reasoning.
        cached: Tokens of the prompt from the cache.
        written: Tokens of the prompt that were written to the cache.
        reasoning: Tokens spent on reasoning.
    """
    if not prompt and not completion:
        return None  # some endpoints send zeros until they know
    fresh = prompt
    if prompt is not None:
        fresh = prompt - (cached or 0) - (written or 0)
        if fresh < 0:  # it contradicts itself; read anew is what costs most
            fresh, cached, written = prompt, None, None
    if completion is not None and reasoning:
        beside = total == (prompt or 0) + completion + reasoning
        if beside or reasoning > completion:
            completion += reasoning
    return TokenUsage(
        input=fresh,
        output=completion,
        cache_read=cached,
        cache_write=written,
        reasoning=reasoning,
    )
