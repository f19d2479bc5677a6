"""Token counts before, or without, a provider's own: sound upper bounds, and flagged guesses."""

from __future__ import annotations

import json

from analytics_service.providers.base import (
    AssistantTurn,
    ProviderRequest,
    ToolSpec,
    ToolTurn,
    UserTurn,
)
from analytics_service.usage.tokens import TokenUsage

_BYTES_PER_TOKEN = 4
"""Rule of thumb that providers give for English text (OpenAI, "What are tokens and how to count
them?": one token is about four characters). Counted in UTF-8 bytes it holds roughly for other
scripts too; numbers and JSON take more tokens than it says."""

_MESSAGE_OVERHEAD = 16
"""Most tokens around a message: role, separators. Known chat templates take 3 to 8."""

_TOOL_OVERHEAD = 64
"""Most tokens around the description of a tool, or around the call of one."""

_TOOLS_OVERHEAD = 1024
"""Most tokens of the instructions that a provider adds as soon as there are tools. Anthropic
documents up to some 800."""

_SCHEMA_FACTOR = 2
"""Providers write the schemas of tools in a way of their own, which may be longer than compact
JSON."""


def upper_bound_tokens(request: ProviderRequest) -> int:
    """Returns a number of tokens that the prompt does not exceed.

    Sound for byte-level tokenizers (all of the catalogue's): no token stands for less than one
    byte of the text's UTF-8.
    """
    total = _MESSAGE_OVERHEAD + _size(request.system)
    for turn in request.turns:
        total += _MESSAGE_OVERHEAD
        match turn:
            case UserTurn(text=text):
                total += _size(text)
            case AssistantTurn(text=text, tool_requests=calls):
                total += _size(text)
                for call in calls:
                    total += _TOOL_OVERHEAD + sum(map(_size, (call.call_id, call.name)))
                    # The provider may send either the text as it came or the parsed arguments.
                    total += max(_size(call.raw), _SCHEMA_FACTOR * _json_size(call.arguments))
            case ToolTurn(call_id=call_id, content=content):
                total += _TOOL_OVERHEAD + _size(call_id) + _size(content)
    if request.tools:
        total += _TOOLS_OVERHEAD
    for tool in request.tools:
        total += _TOOL_OVERHEAD + _SCHEMA_FACTOR * _tool_size(tool)
    return total


def likely_tokens(text: str) -> int:
    """Guesses the number of tokens of a text; only for what is flagged as a guess."""
    return -(-_size(text) // _BYTES_PER_TOKEN)


def estimated_usage(request: ProviderRequest, written_text: str) -> TokenUsage:
    """Guesses the tokens of a call whose provider did not tell them.

    Args:
        request: What was asked.
        written_text: What came of the answer.
    """
    prompt = [request.system, *(_text_of(turn) for turn in request.turns)]
    tools = sum(_tool_size(tool) for tool in request.tools)
    return TokenUsage(
        input=sum(likely_tokens(text) for text in prompt) + -(-tools // _BYTES_PER_TOKEN),
        output=likely_tokens(written_text),
    )


def _text_of(turn: UserTurn | AssistantTurn | ToolTurn) -> str:
    match turn:
        case UserTurn(text=text):
            return text
        case AssistantTurn(text=text, tool_requests=calls):
            return text + "".join(call.name + call.raw for call in calls)
        case ToolTurn(content=content):
            return content


def _size(text: str) -> int:
    # A lone surrogate can not be sent; it must not fail a count either.
    return len(text.encode("utf-8", "surrogatepass"))


def _json_size(value: object) -> int:
    # default=dict: mappings that are not dicts.
    return len(json.dumps(value, default=dict))


def _tool_size(tool: ToolSpec) -> int:
    return _size(tool.name) + _size(tool.description) + len(tool.parameters_json)
