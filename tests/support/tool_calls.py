"""Calls of tools, as a model would make them."""

from __future__ import annotations

import json
from typing import Any

from analytics_service.chat.tools import Toolbox, ToolOutcome
from analytics_service.providers.base import ToolRequest


def asked(tool: str, **arguments: Any) -> ToolRequest:
    """A model's call of a tool."""
    return ToolRequest("call_1", tool, arguments, json.dumps(arguments))


async def read(tools: Toolbox, tool: str, **arguments: Any) -> dict[str, Any]:
    """What a tool returns; it must not fail."""
    outcome = await tools.call(asked(tool, **arguments))
    assert not outcome.error, outcome.error
    assert outcome.result is not None
    json.dumps(outcome.result, allow_nan=False)  # finite, and JSON
    return dict(outcome.result)


async def fail(tools: Toolbox, tool: str, **arguments: Any) -> str:
    """What a tool says that it fails with."""
    outcome: ToolOutcome = await tools.call(asked(tool, **arguments))
    assert outcome.result is None
    assert outcome.proposal is None
    assert outcome.error
    return outcome.error
