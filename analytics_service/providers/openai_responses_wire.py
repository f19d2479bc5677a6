"""OpenAI's Responses API: pure."""

from __future__ import annotations

import json
from typing import Any

from analytics_service.providers import wire
from analytics_service.providers.base import FinishReason, ProviderRequest, UserTurn
from analytics_service.providers.openai_wire import tokens_by_kind
from analytics_service.providers.prompt import Round, normalized
from analytics_service.usage.tokens import TokenUsage

INCOMPLETE_REASONS = {
    "max_output_tokens": FinishReason.LENGTH,
    "max_messages": FinishReason.LENGTH,
    "content_filter": FinishReason.REFUSAL,
}


def arguments_of(request: ProviderRequest) -> dict[str, Any]:
    """The arguments of the SDK's call.

    The API refuses a limit of fewer than 16 tokens. It is sent as it is all the same: to raise it
    would exceed what the caller allows and what is reserved.

    Raises:
        ValueError: The turns do not fit together.
    """
    arguments: dict[str, Any] = {
        "model": request.model,
        "input": items_of(request),
        "max_output_tokens": request.max_output_tokens,
        "store": False,  # by default it keeps conversations for 30 days
        "service_tier": "default",  # standard prices, whatever the project's settings say
        "stream": True,
    }
    if request.system.strip():
        arguments["instructions"] = request.system
    if request.tools:
        arguments["tools"] = [
            {
                "type": "function",
                "name": tool.name,
                "description": tool.description,
                "parameters": dict(tool.parameters),
                "strict": False,  # strict schemas can not leave a parameter out
            }
            for tool in request.tools
        ]
    if request.temperature is not None:
        arguments["temperature"] = request.temperature
    return arguments


def items_of(request: ProviderRequest) -> list[dict[str, Any]]:
    """The conversation as input items.

    What the model reasoned is not sent back to it, though the API gives it in encrypted form:
    only the model that wrote it can read it, and turns are kept for whichever model comes next.
    Calls of tools therefore go without the ids of their items, as the API takes an item with an
    id only along with the reasoning before it.

    Raises:
        ValueError: The turns do not fit together.
    """
    items: list[dict[str, Any]] = []
    for turn in normalized(request.turns):
        match turn:
            case UserTurn(text):
                items.append({"role": "user", "content": text})
            case Round(said, results):
                if said.text.strip():
                    items.append({"role": "assistant", "content": said.text})
                items += [
                    {
                        "type": "function_call",
                        "call_id": call.call_id,
                        "name": call.name,
                        "arguments": json.dumps(call.arguments or {}),
                    }
                    for call in said.tool_requests
                ]
                items += [
                    {
                        "type": "function_call_output",
                        "call_id": result.call_id,
                        "output": result.content,
                    }
                    for result in results
                ]
    return items


def tokens_of(usage: object) -> TokenUsage | None:
    """Reads a `usage` object; None: it says nothing."""
    input_details = wire.field(usage, "input_tokens_details")
    output_details = wire.field(usage, "output_tokens_details")
    return tokens_by_kind(
        prompt=wire.count(usage, "input_tokens"),
        completion=wire.count(usage, "output_tokens"),
        total=wire.count(usage, "total_tokens"),
        cached=wire.count(input_details, "cached_tokens"),
        written=wire.count(input_details, "cache_write_tokens"),
        reasoning=wire.count(output_details, "reasoning_tokens"),
    )
