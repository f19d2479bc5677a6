"""Providers of both protocols, connected to a fake of their HTTP."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from analytics_service.providers.anthropic import AnthropicProvider
from analytics_service.providers.base import Provider
from analytics_service.providers.faults import Endpoint
from analytics_service.providers.openai import OpenAIProvider
from tests.support.fake_provider import FakeProvider, fake_provider
from tests.support.provider_calls import KEY


@pytest.fixture
async def fake() -> AsyncIterator[FakeProvider]:
    async with fake_provider() as running:
        yield running


@pytest.fixture
async def openai_provider(fake: FakeProvider) -> AsyncIterator[OpenAIProvider]:
    provider = OpenAIProvider(
        Endpoint("OpenAI", "OPENAI_API_KEY", KEY),
        base_url=fake.openai_url,
        token_limit="max_completion_tokens",
    )
    yield provider
    await provider.close()


@pytest.fixture
async def anthropic_provider(fake: FakeProvider) -> AsyncIterator[AnthropicProvider]:
    provider = AnthropicProvider(
        Endpoint("Anthropic", "ANTHROPIC_API_KEY", KEY), base_url=fake.anthropic_url
    )
    yield provider
    await provider.close()


@pytest.fixture(params=["openai", "anthropic"])
def protocol(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def provider(
    protocol: str, openai_provider: OpenAIProvider, anthropic_provider: AnthropicProvider
) -> Provider:
    return openai_provider if protocol == "openai" else anthropic_provider
