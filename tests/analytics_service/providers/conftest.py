"""Providers of all protocols, connected to a fake of their HTTP."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from analytics_service.providers.anthropic import AnthropicProvider
from analytics_service.providers.base import Provider
from analytics_service.providers.openai import OpenAIProvider
from analytics_service.providers.openai_responses import OpenAIResponsesProvider
from tests.support.fake_provider import FakeProvider, fake_provider
from tests.support.provider_calls import (
    PROVIDERS_AT,
    anthropic_provider_at,
    company_of,
    openai_provider_at,
    responses_provider_at,
)


@pytest.fixture(autouse=True)
def _no_certificates(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Reading the system's certificates is most of what building a client takes."""
    monkeypatch.delenv("SSL_CERT_FILE", raising=False)
    monkeypatch.setenv("SSL_CERT_DIR", str(tmp_path))


@pytest.fixture
async def fake() -> AsyncIterator[FakeProvider]:
    async with fake_provider() as running:
        yield running


@pytest.fixture(params=PROVIDERS_AT)
def protocol(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
async def provider(protocol: str, fake: FakeProvider) -> AsyncIterator[Provider]:
    urls = {"openai": fake.openai_url, "anthropic": fake.anthropic_url}
    made = PROVIDERS_AT[protocol](urls[company_of(protocol)])
    yield made
    await made.close()


@pytest.fixture
async def openai_provider(fake: FakeProvider) -> AsyncIterator[OpenAIProvider]:
    made = openai_provider_at(fake.openai_url)
    yield made
    await made.close()


@pytest.fixture
async def responses_provider(fake: FakeProvider) -> AsyncIterator[OpenAIResponsesProvider]:
    made = responses_provider_at(fake.openai_url)
    yield made
    await made.close()


@pytest.fixture
async def anthropic_provider(fake: FakeProvider) -> AsyncIterator[AnthropicProvider]:
    made = anthropic_provider_at(fake.anthropic_url)
    yield made
    await made.close()
