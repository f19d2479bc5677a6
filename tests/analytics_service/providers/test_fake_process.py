"""The fake provider in a process of its own, as benchmarks and tests that kill use it."""

from __future__ import annotations

from analytics_service.providers.base import Fault, Finished, FinishReason, Served
from tests.support.fake_provider import fake_provider_process
from tests.support.provider_calls import (
    anthropic_provider_at,
    failure,
    hear,
    openai_provider_at,
)


async def test_it_answers_every_request_alike_until_it_is_killed() -> None:
    options = ("--deltas", "4", "--interval-ms", "1", "--word", "ha", "--model", "served")
    with fake_provider_process(*options) as fake:
        for provider in (
            openai_provider_at(fake.openai_url),
            anthropic_provider_at(fake.anthropic_url),
        ):
            heard = await hear(provider)
            assert heard.text == "hahahaha"
            assert Served("served") in heard.events
            assert heard.events[-1] == Finished(FinishReason.STOP)
            await provider.close()
        last = openai_provider_at(fake.openai_url)
        fake.process.kill()
        fake.process.wait(10)
        assert (await failure(last)).fault is Fault.UNAVAILABLE
        await last.close()
