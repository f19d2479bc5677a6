"""All protocols against a mock that somebody else wrote, after the providers' documentation."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import replace

import pytest
from llmock.pytest_plugin import LLMock

from analytics_service.providers.base import (
    Fault,
    Finished,
    FinishReason,
    Provider,
    Served,
    TextDelta,
)
from tests.support.provider_calls import (
    KEY,
    PLAIN_QUESTION,
    PROVIDERS_AT,
    QUESTION,
    company_of,
    failure,
    hear,
)


@pytest.fixture
async def provider(protocol: str, llmock: LLMock) -> AsyncIterator[Provider]:
    made = PROVIDERS_AT[protocol](llmock.base_url(company_of(protocol)))
    yield made
    await made.close()


async def test_an_answer(llmock: LLMock, provider: Provider) -> None:
    llmock.reply("Two jobs are running.")
    heard = await hear(provider, PLAIN_QUESTION)
    assert heard.text == "Two jobs are running."
    assert Served("a-model") in heard.events
    assert heard.events[-1] == Finished(FinishReason.STOP)
    assert heard.tokens is not None
    assert None not in (heard.tokens.input, heard.tokens.output)
    assert llmock.last_request.stream


async def test_a_tool_call(llmock: LLMock, provider: Provider) -> None:
    llmock.call_tool("list_jobs", {"limit": 5, "state": "läuft"})
    heard = await hear(provider)
    assert [(t.name, t.arguments) for t in heard.tools] == [
        ("list_jobs", {"limit": 5, "state": "läuft"})
    ]
    assert heard.events[-1] == Finished(FinishReason.TOOL_CALLS)


async def test_a_malformed_tool_call(llmock: LLMock, provider: Provider) -> None:
    llmock.call_tool("list_jobs", {"limit": 5}).break_tool_call("malformed_arguments")
    [request] = (await hear(provider)).tools
    assert request.arguments is None
    assert request.error


async def test_an_unknown_tool(llmock: LLMock, provider: Provider) -> None:
    llmock.call_tool("list_jobs", {}).break_tool_call("unknown_tool")
    [request] = (await hear(provider)).tools
    assert request.name != "list_jobs"
    assert request.arguments is not None


async def test_a_rate_limit(llmock: LLMock, provider: Provider) -> None:
    llmock.rate_limit(retry_after=7)
    error = await failure(provider)
    assert (error.fault, error.status, error.retry_after) == (Fault.RATE_LIMITED, 429, 7.0)
    assert len(llmock.requests) == 1


@pytest.mark.parametrize(
    ("status", "fault"),
    [
        (400, Fault.REFUSED),
        (401, Fault.UNAUTHENTICATED),
        (403, Fault.UNAUTHENTICATED),
        (404, Fault.MODEL_NOT_FOUND),
        (500, Fault.UNAVAILABLE),
        (503, Fault.UNAVAILABLE),
        (529, Fault.UNAVAILABLE),
    ],
)
async def test_errors(llmock: LLMock, provider: Provider, status: int, fault: Fault) -> None:
    llmock.fail(status, message=f"no luck with {KEY}")
    error = await failure(provider)
    assert (error.fault, error.status) == (fault, status)
    assert "no luck" in error.message


async def test_a_prompt_that_is_too_long(llmock: LLMock, provider: Provider) -> None:
    llmock.context_overflow()
    assert (await failure(provider)).fault is Fault.CONTEXT_TOO_LONG


async def test_streams_that_break(llmock: LLMock, provider: Provider) -> None:
    text = "one two three four five six seven"
    for break_it in (llmock.disconnect, llmock.truncate, llmock.corrupt):
        llmock.reply(text)
        break_it(after_chunks=6)
        heard = await hear(provider, PLAIN_QUESTION)
        assert heard.error is not None, break_it
        assert heard.error.fault is Fault.STREAM_BROKEN
        assert text.startswith(heard.text)


async def test_a_stream_that_stalls(llmock: LLMock, provider: Provider) -> None:
    llmock.reply("one two three four five six").stall(after_chunks=6, seconds=30)
    error = await failure(provider, replace(QUESTION, idle_timeout=0.2))
    assert error.fault is Fault.TIMEOUT


async def test_a_call_that_is_cancelled_midway(llmock: LLMock, provider: Provider) -> None:
    llmock.reply("one two three four five six").stall(after_chunks=6, seconds=30)
    async with asyncio.timeout(10):
        async with aclosing(provider.stream(QUESTION)) as stream:
            async for event in stream:
                if isinstance(event, TextDelta):
                    break
    [record] = await asyncio.to_thread(lambda: llmock.requests)
    assert not record.completed
