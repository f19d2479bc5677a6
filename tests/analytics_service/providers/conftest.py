"""Providers of both protocols, connected to a fake of their HTTP."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from analytics_service.providers.anthropic import AnthropicProvider
from analytics_service.providers.base import Provider
from analytics_service.providers.openai import OpenAIProvider
from tests.support.fake_provider import FakeProvider, fake_provider
from tests.support.provider_calls import anthropic_provider_at, openai_provider_at


@pytest.fixture(autouse=True)
def _no_certificates(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Reading the system's certificates is most of what building a client takes."""
    monkeypatch.delenv("SSL_CERT_FILE", raising=False)
    monkeypatch.setenv("SSL_CERT_DIR", str(tmp_path))


@pytest.fixture
async def fake() -> AsyncIterator[FakeProvider]:
    async with fake_provider() as running:
        yield running


@pytest.fixture(params=["openai", "anthropic"])
def protocol(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
async def provider(protocol: str, fake: FakeProvider) -> AsyncIterator[Provider]:
    made: Provider = (
        openai_provider_at(fake.openai_url)
        if protocol == "openai"
        else anthropic_provider_at(fake.anthropic_url)
    )
    yield made
    await made.close()


@pytest.fixture
async def openai_provider(fake: FakeProvider) -> AsyncIterator[OpenAIProvider]:
    made = openai_provider_at(fake.openai_url)
    yield made
    await made.close()


@pytest.fixture
async def anthropic_provider(fake: FakeProvider) -> AsyncIterator[AnthropicProvider]:
    made = anthropic_provider_at(fake.anthropic_url)
    yield made
    await made.close()
