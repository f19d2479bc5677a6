"""Anthropic's messages: pure."""

from __future__ import annotations

from typing import Any

from analytics_service.providers.base import FinishReason, ProviderRequest, UserTurn
from analytics_service.providers.prompt import Round, normalized
from analytics_service.providers.wire import count
from analytics_service.usage.tokens import TokenUsage

FINISH_REASONS = {
    "end_turn": FinishReason.STOP,
    "stop_sequence": FinishReason.STOP,
    "max_tokens": FinishReason.LENGTH,
    "model_context_window_exceeded": FinishReason.LENGTH,
    "pause_turn": FinishReason.LENGTH,  # cut short by the provider
    "tool_use": FinishReason.TOOL_CALLS,
    "refusal": FinishReason.REFUSAL,
}


def arguments_of(request: ProviderRequest) -> dict[str, Any]:
    """The arguments of the SDK's call.

    Raises:
        ValueError: The turns do not fit together.
    """
    arguments: dict[str, Any] = {
        "model": request.model,
        "max_tokens": request.max_output_tokens,
        "messages": messages_of(request),
        "stream": True,
    }
    if request.system.strip():
        arguments["system"] = request.system
    if request.tools:
        arguments["tools"] = [
            {
                "name": tool.name,
                "description": tool.description,
                "input_schema": dict(tool.parameters),
            }
            for tool in request.tools
        ]
    if request.temperature is not None:
        # The SDK has no argument for it any more; older models still take it.
        arguments["extra_body"] = {"temperature": request.temperature}
    return arguments


def messages_of(request: ProviderRequest) -> list[dict[str, Any]]:
    """The conversation as messages, user and assistant by turns.

    Results of tools are the user's, all those of a round in one message; where nothing was said
    in between, the user's next words follow in the same.

    Raises:
        ValueError: The turns do not fit together.
    """
    messages: list[dict[str, Any]] = []
    for turn in normalized(request.turns):
        match turn:
            case UserTurn(text):
                _append(messages, "user", [{"type": "text", "text": text}])
            case Round(said, results):
                blocks: list[dict[str, Any]] = []
                if said.text.strip():
                    blocks.append({"type": "text", "text": said.text})
                blocks += [
                    {
                        "type": "tool_use",
                        "id": call.call_id,
                        "name": call.name,
                        "input": dict(call.arguments or {}),
                    }
                    for call in said.tool_requests
                ]
                _append(messages, "assistant", blocks)
                _append(
                    messages,
                    "user",
                    [
                        {
                            "type": "tool_result",
                            "tool_use_id": result.call_id,
                            "content": result.content,
                            "is_error": result.is_error,
                        }
                        for result in results
                    ],
                )
    return messages


def _append(messages: list[dict[str, Any]], role: str, blocks: list[dict[str, Any]]) -> None:
    if not blocks:
        return
    if messages and messages[-1]["role"] == role:
        messages[-1]["content"] += blocks
    else:
        messages.append({"role": role, "content": blocks})


def tokens_of(usage: object, before: TokenUsage) -> TokenUsage:
    """Reads a `usage` object.

    Its numbers are cumulative; those that it leaves out are as they were before. Its input
    leaves out what was read from and written to the cache.
    """

    def newer(known: int | None, name: str, of: object = usage) -> int | None:
        value = count(of, name)
        return known if value is None else value

    details = getattr(usage, "output_tokens_details", None)
    return TokenUsage(
        input=newer(before.input, "input_tokens"),
        output=newer(before.output, "output_tokens"),
        cache_read=newer(before.cache_read, "cache_read_input_tokens"),
        cache_write=newer(before.cache_write, "cache_creation_input_tokens"),
        reasoning=newer(before.reasoning, "thinking_tokens", details),
    )
