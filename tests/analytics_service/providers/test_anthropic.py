"""What is Anthropic's own."""

from __future__ import annotations

import pytest

from analytics_service.providers.anthropic import AnthropicProvider
from analytics_service.providers.base import Fault, Finished, FinishReason, UsageReport
from analytics_service.providers.faults import Endpoint
from tests.support.fake_provider import FakeProvider, Usage, cut, event, finish, paced, text
from tests.support.provider_calls import KEY, PLAIN_QUESTION, hear


async def test_usage_is_known_early_and_replaced_at_the_end(
    fake: FakeProvider, anthropic_provider: AnthropicProvider
) -> None:
    fake.reply(text("hi"), usage=Usage(input=7, output=20, cache_read=100))
    heard = await hear(anthropic_provider)
    reports = [told.tokens for told in heard.events if isinstance(told, UsageReport)]
    assert [(report.input, report.output) for report in reports] == [(7, 1), (7, 20)]


async def test_nothing_is_missed_after_the_reason_to_stop(
    fake: FakeProvider, anthropic_provider: AnthropicProvider
) -> None:
    fake.reply(text("hi"), finish("stop"), cut())
    heard = await hear(anthropic_provider)
    assert heard.error is None
    assert heard.events[-1] == Finished(FinishReason.STOP)
    assert heard.tokens is not None
    assert heard.tokens.output == 5


@pytest.mark.parametrize(
    ("reason", "expected"),
    [
        ("stop_sequence", FinishReason.STOP),
        ("pause_turn", FinishReason.LENGTH),
        ("model_context_window_exceeded", FinishReason.LENGTH),
    ],
)
async def test_stop_reasons(
    fake: FakeProvider, anthropic_provider: AnthropicProvider, reason: str, expected: FinishReason
) -> None:
    fake.reply(text("hi"), finish=reason)
    assert (await hear(anthropic_provider)).events[-1] == Finished(expected)


async def test_a_tool_call_that_comes_whole(
    fake: FakeProvider, anthropic_provider: AnthropicProvider
) -> None:
    block = {"type": "tool_use", "id": "toolu_1", "name": "get_job", "input": {"a": 1}}
    start = {"type": "content_block_start", "index": 0, "content_block": block}
    fake.reply(
        event(start, "content_block_start"),
        event({"type": "content_block_stop", "index": 0}, "content_block_stop"),
        finish("tool_calls"),
    )
    heard = await hear(anthropic_provider)
    assert [(t.call_id, t.arguments) for t in heard.tools] == [("toolu_1", {"a": 1})]
    assert heard.events[-1] == Finished(FinishReason.TOOL_CALLS)


async def test_an_answer_that_ends_within_a_tool_call_is_broken(
    fake: FakeProvider, anthropic_provider: AnthropicProvider
) -> None:
    block = {"type": "tool_use", "id": "toolu_1", "name": "get_job", "input": {}}
    start = {"type": "content_block_start", "index": 0, "content_block": block}
    fake.reply(event(start, "content_block_start"), finish("tool_calls"))
    heard = await hear(anthropic_provider)
    assert heard.tools == []
    assert heard.error is not None
    assert heard.error.fault is Fault.STREAM_BROKEN


async def test_thoughts_are_not_the_answer(
    fake: FakeProvider, anthropic_provider: AnthropicProvider
) -> None:
    start = {"type": "content_block_start", "index": 0, "content_block": {"type": "thinking"}}
    delta = {"type": "thinking_delta", "thinking": "hm"}
    fake.reply(
        event(start, "content_block_start"),
        event({"type": "content_block_delta", "index": 0, "delta": delta}, "content_block_delta"),
        event({"type": "content_block_stop", "index": 0}, "content_block_stop"),
        text("hi"),
    )
    assert (await hear(anthropic_provider)).text == "hi"


async def test_other_endpoints_get_nothing_meant_for_anthropic(
    fake: FakeProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ANTHROPIC_API_KEY", KEY)
    monkeypatch.setenv("ANTHROPIC_AUTH_TOKEN", KEY)
    monkeypatch.setenv(
        "ANTHROPIC_CUSTOM_HEADERS", f"X-Mine: header-secret\nX-Api-Key: {KEY}\nauthorization: {KEY}"
    )
    fake.default = paced(1)
    provider = AnthropicProvider(Endpoint("Gateway"), base_url=fake.anthropic_url)
    await hear(provider, PLAIN_QUESTION)
    await provider.close()
    [request] = fake.requests
    assert "secret" not in str(request.headers)
    assert KEY not in str(request.headers)
