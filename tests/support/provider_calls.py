"""Calls of providers, for tests."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest

from analytics_service.providers.anthropic import AnthropicProvider
from analytics_service.providers.base import (
    Provider,
    ProviderError,
    ProviderEvent,
    ProviderRequest,
    TextDelta,
    ToolRequest,
    ToolSpec,
    UsageReport,
    UserTurn,
)
from analytics_service.providers.faults import Endpoint
from analytics_service.providers.openai import OpenAIProvider
from analytics_service.providers.openai_responses import OpenAIResponsesProvider
from analytics_service.usage.tokens import TokenUsage

KEY = "sk-test-0123456789abcdef"
"""A key that no error may repeat."""

QUESTION = ProviderRequest(
    model="a-model",
    system="Be brief.",
    turns=(UserTurn("Which jobs are running?"),),
    tools=(
        ToolSpec(
            "list_jobs",
            "Lists jobs.",
            {"type": "object", "properties": {"limit": {"type": "integer"}}},
        ),
    ),
    idle_timeout=10.0,
)
PLAIN_QUESTION = replace(QUESTION, tools=())


def openai_provider_at(url: str) -> OpenAIProvider:
    return OpenAIProvider(
        Endpoint("OpenAI", "OPENAI_API_KEY", KEY),
        base_url=url,
        token_limit="max_completion_tokens",
    )


def responses_provider_at(url: str) -> OpenAIResponsesProvider:
    return OpenAIResponsesProvider(Endpoint("OpenAI", "OPENAI_API_KEY", KEY), base_url=url)


def anthropic_provider_at(url: str) -> AnthropicProvider:
    return AnthropicProvider(Endpoint("Anthropic", "ANTHROPIC_API_KEY", KEY), base_url=url)


PROVIDERS_AT: dict[str, Callable[[str], Provider]] = {
    "openai": openai_provider_at,
    "openai-responses": responses_provider_at,
    "anthropic": anthropic_provider_at,
}
"""Makes a provider at a URL, by its protocol."""


def company_of(protocol: str) -> str:
    """Whose protocol it is."""
    return protocol.partition("-")[0]


@dataclass(frozen=True)
class Heard:
    """What came of a call."""

    events: tuple[ProviderEvent, ...]
    error: ProviderError | None = None

    @property
    def text(self) -> str:
        return "".join(event.text for event in self.events if isinstance(event, TextDelta))

    @property
    def tools(self) -> list[ToolRequest]:
        return [event for event in self.events if isinstance(event, ToolRequest)]

    @property
    def tokens(self) -> TokenUsage | None:
        reports = [event.tokens for event in self.events if isinstance(event, UsageReport)]
        return reports[-1] if reports else None


async def hear(provider: Provider, request: ProviderRequest = QUESTION) -> Heard:
    """Makes a call and listens to its end, be it an error."""
    events: list[ProviderEvent] = []
    try:
        async for event in provider.stream(request):
            events.append(event)  # noqa: PERF401 - those before an error count
    except ProviderError as error:
        return Heard(tuple(events), error)
    return Heard(tuple(events))


async def failure(provider: Provider, request: ProviderRequest = QUESTION) -> ProviderError:
    """Makes a call that is to fail; nothing of the error may show the key."""
    with pytest.raises(ProviderError) as caught:
        async for _ in provider.stream(request):
            pass
    error = caught.value
    shown = "".join(traceback.format_exception(error))
    for text in (shown, str(error), repr(error), repr(vars(error))):
        assert KEY not in text
    # The SDK's exceptions may repeat it.
    assert error.__context__ is None
    assert error.__cause__ is None
    return error
