"""What OpenAI-compatible endpoints do each in their own way."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from analytics_service.providers import sdk
from analytics_service.providers.base import (
    Fault,
    Finished,
    FinishReason,
    ProviderRequest,
    Served,
    UserTurn,
)
from analytics_service.providers.faults import Endpoint
from analytics_service.providers.openai import OpenAIProvider
from analytics_service.usage.tokens import TokenUsage
from tests.support.fake_provider import (
    FakeProvider,
    Usage,
    cut,
    event,
    finish,
    paced,
    stall,
    text,
)
from tests.support.provider_calls import KEY, PLAIN_QUESTION, failure, hear


def chunk(**fields: Any) -> dict[str, Any]:
    return {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m", **fields}


def delta(**content: Any) -> dict[str, Any]:
    return chunk(choices=[{"index": 0, "delta": content, "finish_reason": None}])


async def test_usage_is_asked_for(fake: FakeProvider, openai_provider: OpenAIProvider) -> None:
    fake.default = paced(1)
    await hear(openai_provider)
    body = fake.requests[0].body
    assert body["stream"] is True
    assert body["stream_options"] == {"include_usage": True}
    assert body["max_completion_tokens"] == 4096
    assert "max_tokens" not in body


async def test_an_endpoint_that_does_not_tell_usage_is_told_of_and_not_asked_again(
    fake: FakeProvider, openai_provider: OpenAIProvider
) -> None:
    fake.fail(400, kind="invalid_request_error", message="Unknown parameter: 'stream_options'.")
    error = await failure(openai_provider)
    assert error.fault is Fault.REFUSED
    assert "include_usage" in error.message
    assert len(fake.requests) == 1


@pytest.mark.parametrize("end", [cut(), stall()])
async def test_an_answer_that_has_finished_is_whole_without_its_usage(
    fake: FakeProvider,
    openai_provider: OpenAIProvider,
    end: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sdk, "TAIL_SECONDS", 0.2)
    call = fake.reply(text("hi"), finish("stop"), end)
    heard = await hear(openai_provider)
    assert heard.error is None
    assert heard.events[-1] == Finished(FinishReason.STOP)
    assert heard.tokens is None
    if end == stall():
        await call.disconnected()


async def test_reasoning_beside_the_completion_is_added(
    fake: FakeProvider, openai_provider: OpenAIProvider
) -> None:
    fake.reply(text("hi"), usage=Usage(input=7, output=120, reasoning=100, reasoning_beside=True))
    heard = await hear(openai_provider)
    assert heard.tokens == TokenUsage(input=7, output=120, reasoning=100)


async def test_tool_calls_that_all_have_index_0(
    fake: FakeProvider, openai_provider: OpenAIProvider
) -> None:
    calls = [
        {"index": 0, "id": call_id, "function": {"name": "get_job", "arguments": raw}}
        for call_id, raw in [("x", '{"a": 1}'), ("y", '{"a": 2}')]
    ]
    fake.reply(event(delta(tool_calls=calls[:1])), event(delta(tool_calls=calls[1:])))
    heard = await hear(openai_provider)
    assert [(t.call_id, t.arguments) for t in heard.tools] == [("x", {"a": 1}), ("y", {"a": 2})]
    # Its finish reason was "stop", which some endpoints send after tool calls too.
    assert heard.events[-1] == Finished(FinishReason.TOOL_CALLS)


async def test_tool_calls_with_arguments_that_are_an_object(
    fake: FakeProvider, openai_provider: OpenAIProvider
) -> None:
    call = {"index": 0, "function": {"name": "get_job", "arguments": {"a": 1}}}
    fake.reply(event(delta(tool_calls=[call])))
    [request] = (await hear(openai_provider)).tools
    assert request.arguments == {"a": 1}
    assert request.call_id


async def test_a_refusal_in_words_is_told_and_is_one(
    fake: FakeProvider, openai_provider: OpenAIProvider
) -> None:
    fake.reply(event(delta(refusal="I can not help with that.")))
    heard = await hear(openai_provider)
    assert heard.text == "I can not help with that."
    assert heard.events[-1] == Finished(FinishReason.REFUSAL)


async def test_first_chunks_without_a_model(
    fake: FakeProvider, openai_provider: OpenAIProvider
) -> None:
    fake.reply(event({"model": "", "choices": []}), text("hi"), model="")
    fake.reply(event({"model": "the-model", "choices": []}), text("hi"), model="")
    first = await hear(openai_provider)
    second = await hear(openai_provider)
    assert not any(isinstance(told, Served) for told in first.events)
    assert Served("the-model") in second.events


async def test_usage_of_zeros_is_none(fake: FakeProvider, openai_provider: OpenAIProvider) -> None:
    zeros = {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}
    fake.reply(event(chunk(choices=[], usage=zeros)), text("hi"), usage=None)
    assert (await hear(openai_provider)).tokens is None


async def test_an_error_in_the_stream_named_by_its_status(
    fake: FakeProvider, openai_provider: OpenAIProvider
) -> None:
    fake.reply(text("a"), event({"error": {"code": 429, "message": "upstream is busy"}}))
    error = await failure(openai_provider)
    assert error.fault is Fault.RATE_LIMITED
    assert error.status == 429


async def test_other_endpoints_get_max_tokens_and_nothing_meant_for_openai(
    fake: FakeProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("OPENAI_ORG_ID", "org-secret")
    monkeypatch.setenv("OPENAI_PROJECT_ID", "proj-secret")
    monkeypatch.setenv("OPENAI_CUSTOM_HEADERS", f"X-Mine: header-secret\nAuthorization: {KEY}")
    fake.default = paced(1)
    provider = OpenAIProvider(Endpoint("vLLM"), base_url=fake.openai_url, token_limit="max_tokens")
    await hear(provider, PLAIN_QUESTION)
    await provider.close()
    [request] = fake.requests
    assert "secret" not in str(request.headers)
    assert KEY not in str(request.headers)
    assert request.body["max_tokens"] == 4096
    assert "max_completion_tokens" not in request.body


async def test_connections_are_kept(fake: FakeProvider, openai_provider: OpenAIProvider) -> None:
    fake.default = paced(1)
    for _ in range(3):
        await hear(openai_provider)
    assert fake.open_connections == 1


async def test_one_provider_serves_calls_with_different_limits(
    fake: FakeProvider, openai_provider: OpenAIProvider
) -> None:
    fake.reply(stall())
    fake.reply(text("hi"))
    short = ProviderRequest("m", "", (UserTurn("a"),), idle_timeout=0.2)
    long = ProviderRequest("m", "", (UserTurn("b"),), idle_timeout=10.0)
    first, second = await asyncio.gather(hear(openai_provider, short), hear(openai_provider, long))
    assert first.error is not None
    assert first.error.fault is Fault.TIMEOUT
    assert second.text == "hi"
