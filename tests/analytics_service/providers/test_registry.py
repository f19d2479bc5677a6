from __future__ import annotations

import subprocess
import sys
from collections.abc import AsyncGenerator

import pytest

from analytics_service.catalogue.model import Protocol, ProviderSpec
from analytics_service.providers.base import (
    Fault,
    Finished,
    FinishReason,
    Provider,
    ProviderError,
    ProviderEvent,
    ProviderRequest,
)
from analytics_service.providers.registry import Providers
from tests.support.fake_provider import FakeProvider, paced
from tests.support.provider_calls import KEY, PLAIN_QUESTION, hear

OPENAI = ProviderSpec(
    "openai", "OpenAI", Protocol.OPENAI, api_key_env="OPENAI_API_KEY", price_list="openai"
)
ANTHROPIC = ProviderSpec(
    "anthropic", "Anthropic", Protocol.ANTHROPIC, api_key_env="ANTHROPIC_API_KEY"
)
RESPONSES = ProviderSpec(
    "responses", "OpenAI", Protocol.OPENAI_RESPONSES, api_key_env="OPENAI_API_KEY"
)
LOCAL = ProviderSpec("local", "In process", Protocol.LOCAL)


class Canned:
    """A provider for the place of the local one."""

    def __init__(self) -> None:
        self.is_closed = False

    async def stream(self, request: ProviderRequest) -> AsyncGenerator[ProviderEvent, None]:
        yield Finished(FinishReason.STOP)

    async def close(self) -> None:
        self.is_closed = True


def of(*specs: ProviderSpec, **environ: str) -> Providers:
    return Providers(specs, environ)


def test_a_missing_key_is_told_with_what_to_set() -> None:
    providers = of(OPENAI)
    reason = providers.unavailable("openai")
    assert reason is not None
    assert reason.startswith("OPENAI_API_KEY is not set: export it")
    with pytest.raises(ProviderError) as caught:
        providers.get("openai")
    assert caught.value.fault is Fault.UNAUTHENTICATED
    assert caught.value.message == reason


@pytest.mark.parametrize("key", ["", "  ", "sk-a sk-b", "sk-a\nsk-b", "sk-…"])
def test_a_key_that_is_none_is_not_sent_nor_shown(key: str) -> None:
    reason = of(OPENAI, OPENAI_API_KEY=key).unavailable("openai")
    assert reason is not None
    assert "OPENAI_API_KEY" in reason
    assert "sk-" not in reason


def test_a_key_is_there() -> None:
    providers = of(OPENAI, ANTHROPIC, OPENAI_API_KEY=f"{KEY}\n")
    assert providers.unavailable("openai") is None
    assert providers.unavailable("anthropic") is not None
    assert KEY not in repr(providers)


def test_a_missing_sdk_is_told_with_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "anthropic", None)
    providers = of(OPENAI, ANTHROPIC, OPENAI_API_KEY=KEY, ANTHROPIC_API_KEY=KEY)
    assert providers.unavailable("openai") is None
    reason = providers.unavailable("anthropic")
    assert reason is not None
    assert "midcourse[analytics]" in reason
    with pytest.raises(ProviderError) as caught:
        providers.get("anthropic")
    assert caught.value.fault is Fault.UNAVAILABLE


def test_an_unknown_provider_is_told_with_those_there_are() -> None:
    providers = of(OPENAI, ANTHROPIC)
    for ask in (providers.unavailable, providers.get):
        with pytest.raises(ValueError, match="'xai'; there are: anthropic, openai"):
            ask("xai")


async def test_each_is_built_once_and_closed() -> None:
    made: list[Canned] = []

    def build() -> Provider:
        made.append(Canned())
        return made[-1]

    providers = Providers([LOCAL], {}, build)
    assert made == []
    assert providers.get("local") is providers.get("local") is made[0]
    await providers.close()
    await providers.close()
    assert [canned.is_closed for canned in made] == [True]
    with pytest.raises(ProviderError, match="closed"):
        providers.get("local")


def test_the_local_provider_may_be_missing() -> None:
    assert of(LOCAL).unavailable("local") == "In process is not set up in this service"
    providers = Providers([LOCAL], {}, Canned, lambda: "there are no weights")
    assert providers.unavailable("local") == "In process: there are no weights"
    with pytest.raises(ProviderError, match="there are no weights"):
        providers.get("local")


async def test_warming_builds_what_can_be_used() -> None:
    environ = {"OPENAI_API_KEY": KEY, "ANTHROPIC_API_KEY": KEY}
    xai = ProviderSpec("xai", "xAI", Protocol.OPENAI, "https://api.x.ai/v1", "XAI_API_KEY")
    providers = Providers([OPENAI, RESPONSES, ANTHROPIC, xai, LOCAL], environ, Canned)
    await providers.warm()
    environ.clear()  # what is built needs its key no more
    names = ("openai", "responses", "anthropic")
    assert [type(providers.get(name)).__name__ for name in names] == [
        "OpenAIProvider",
        "OpenAIResponsesProvider",
        "AnthropicProvider",
    ]
    await providers.close()


@pytest.mark.parametrize(
    ("price_list", "limit"),
    [("openai", "max_completion_tokens"), ("x-ai", "max_completion_tokens"), (None, "max_tokens")],
)
async def test_endpoints_are_called_with_their_key_and_limit(
    fake: FakeProvider, price_list: str | None, limit: str
) -> None:
    spec = ProviderSpec("mine", "Mine", Protocol.OPENAI, fake.openai_url, "MY_API_KEY", price_list)
    keyless = ProviderSpec("free", "Free", Protocol.ANTHROPIC, fake.anthropic_url)
    providers = of(spec, keyless, MY_API_KEY=KEY)
    fake.default = paced(1)
    await hear(providers.get("mine"), PLAIN_QUESTION)
    await hear(providers.get("free"), PLAIN_QUESTION)
    await providers.close()
    mine, free = fake.requests
    assert mine.headers["authorization"] == f"Bearer {KEY}"
    assert mine.body[limit] == PLAIN_QUESTION.max_output_tokens
    assert free.path == "/v1/messages"
    assert free.headers["authorization"] == "Bearer none"


def test_sdks_are_not_imported_before_they_are_needed() -> None:
    code = (
        "import sys; import analytics_service.providers.registry as r\n"
        "r.Providers([], {})\n"
        "print([m for m in ('openai', 'anthropic', 'httpx2', 'torch') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.strip() == "[]"
