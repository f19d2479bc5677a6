"""What all protocols make of what a provider sends, against the fake provider."""

from __future__ import annotations

import asyncio
import logging
from contextlib import aclosing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest

from analytics_service.providers.base import (
    Fault,
    Finished,
    FinishReason,
    Provider,
    Served,
    TextDelta,
    ToolRequest,
    UsageReport,
)
from analytics_service.usage.tokens import TokenUsage
from tests.support.fake_provider import (
    BOUND,
    FakeProvider,
    Usage,
    cut,
    error_event,
    event,
    finish,
    garbage,
    gate,
    interleaved,
    paced,
    stall,
    text,
    tool_call,
)
from tests.support.provider_calls import (
    KEY,
    PLAIN_QUESTION,
    QUESTION,
    company_of,
    failure,
    hear,
)


async def test_text_is_told_as_it_comes(fake: FakeProvider, provider: Provider) -> None:
    more = asyncio.Event()
    fake.reply(text("Hel", "lo"), gate(more), text("!"))
    events = aiter(provider.stream(QUESTION))
    async with asyncio.timeout(BOUND):
        before = [await anext(events)]
        while before[-1] != TextDelta("lo"):
            before.append(await anext(events))
    assert Served("a-model") in before
    more.set()
    after = [event async for event in events]
    assert after[0] == TextDelta("!")
    assert after[-1] == Finished(FinishReason.STOP)


async def test_the_served_model_is_told_where_it_is_another(
    fake: FakeProvider, provider: Provider
) -> None:
    fake.reply(text("hi"), model="another-model-2026-10-01")
    heard = await hear(provider)
    assert [e for e in heard.events if isinstance(e, Served)] == [
        Served("another-model-2026-10-01")
    ]


async def test_usage_comes_by_kind_before_the_finish(
    fake: FakeProvider, provider: Provider
) -> None:
    fake.reply(
        text("hi"), usage=Usage(input=7, output=20, cache_read=100, cache_write=30, reasoning=15)
    )
    heard = await hear(provider)
    assert heard.tokens == TokenUsage(
        input=7, output=20, cache_read=100, cache_write=30, reasoning=15
    )
    assert isinstance(heard.events[-2], UsageReport)
    assert heard.events[-1] == Finished(FinishReason.STOP)


async def test_missing_usage_is_no_failure_and_not_zero(
    fake: FakeProvider, provider: Provider
) -> None:
    fake.reply(text("hi"), usage=None)
    heard = await hear(provider)
    assert heard.error is None
    assert heard.tokens is None
    assert heard.events[-1] == Finished(FinishReason.STOP)


async def test_tool_calls_that_take_turns(fake: FakeProvider, provider: Provider) -> None:
    fake.reply(
        text("Let me look."),
        interleaved(
            tool_call("list_jobs", {"limit": 5}, "call_a"),
            tool_call("get_job", {"name": "jobs/ünï"}, "call_b", pieces=20),
        ),
    )
    heard = await hear(provider)
    assert [(t.call_id, t.name, t.arguments, t.error) for t in heard.tools] == [
        ("call_a", "list_jobs", {"limit": 5}, ""),
        ("call_b", "get_job", {"name": "jobs/ünï"}, ""),
    ]
    assert heard.events[-1] == Finished(FinishReason.TOOL_CALLS)


@pytest.mark.parametrize("raw", ['{"limit": 5', "[1]", '{"limit": NaN}', '"text"'])
async def test_unreadable_arguments_of_a_tool_call_are_told(
    fake: FakeProvider, provider: Provider, raw: str
) -> None:
    fake.reply(tool_call("list_jobs", raw))
    heard = await hear(provider)
    [request] = heard.tools
    assert isinstance(request, ToolRequest)
    assert request.arguments is None
    assert request.raw == raw
    assert raw in request.error
    assert heard.events[-1] == Finished(FinishReason.TOOL_CALLS)


async def test_a_tool_call_without_arguments(fake: FakeProvider, provider: Provider) -> None:
    fake.reply(tool_call("list_jobs", ""))
    assert [t.arguments for t in (await hear(provider)).tools] == [{}]


@pytest.mark.parametrize(
    ("reason", "expected"),
    [
        ("stop", FinishReason.STOP),
        ("length", FinishReason.LENGTH),
        ("content_filter", FinishReason.REFUSAL),
    ],
)
async def test_finish_reasons(
    fake: FakeProvider, provider: Provider, reason: str, expected: FinishReason
) -> None:
    fake.reply(text("hi"), finish=reason)
    assert (await hear(provider)).events[-1] == Finished(expected)


async def test_an_unknown_finish_reason_is_told_with_the_usage(
    fake: FakeProvider, provider: Provider
) -> None:
    fake.reply(text("hi"), finish="out_of_cheese")
    heard = await hear(provider)
    assert heard.error is not None
    assert heard.error.fault is Fault.STREAM_BROKEN
    assert "out_of_cheese" in heard.error.message
    assert heard.tokens == TokenUsage(input=10, output=5)


@pytest.mark.parametrize("protocol", ["openai", "anthropic"])  # the others name no such reason
async def test_an_answer_that_ends_in_tool_calls_but_has_none_is_broken(
    fake: FakeProvider, provider: Provider
) -> None:
    fake.reply(text("hi"), finish="tool_calls")
    assert (await failure(provider)).fault is Fault.STREAM_BROKEN


async def test_an_answer_without_a_finish_is_broken(fake: FakeProvider, provider: Provider) -> None:
    fake.reply(text("Hel"), tool_call("list_jobs", '{"lim'), finish=None)
    heard = await hear(provider)
    assert heard.text == "Hel"
    assert heard.error is not None
    assert heard.error.fault is Fault.STREAM_BROKEN
    assert "without" in heard.error.message
    assert not any(isinstance(event, Finished) for event in heard.events)


async def test_a_connection_that_breaks_is_a_broken_answer(
    fake: FakeProvider, provider: Provider
) -> None:
    fake.reply(text("Hel"), cut())
    heard = await hear(provider)
    assert heard.text == "Hel"
    assert heard.error is not None
    assert heard.error.fault is Fault.STREAM_BROKEN
    assert heard.error.is_transient


async def test_garbage_is_a_broken_answer(fake: FakeProvider, provider: Provider) -> None:
    fake.reply(text("Hel"), garbage(), text("lo"))
    assert (await failure(provider)).fault is Fault.STREAM_BROKEN


@pytest.mark.parametrize(
    "data",
    [
        "[]",
        '"text"',
        "17",
        '{"choices": 5, "type": 7}',
        '{"choices": [null, 7], "type": "content_block_delta", "delta": null}',
        '{"choices": [{"index": 0, "delta": {"content": 5, "tool_calls": [null]}}]}',
        '{"type": "content_block_start", "index": 9, "content_block": {"type": "of_the_future"}}',
        '{"type": "event_of_the_future", "choices": null}',
        '{"type": "response.output_text.delta", "delta": 5}',
        '{"type": "response.output_item.done", "item": {"type": "of_the_future"}}',
        '{"type": "response.function_call_arguments.delta", "output_index": 9, "delta": "{"}',
        '{"type": "response.completed", "response": null}',
        '{"type": "response.incomplete", "response": {"incomplete_details": 7}}',
        '{"type": "response.failed", "response": {"error": null}}',
        "[" * 100_000,
    ],
)
async def test_odd_events_raise_nothing_but_provider_errors(
    fake: FakeProvider, provider: Provider, data: str
) -> None:
    fake.reply(text("Hel"), event(data, "content_block_delta"), text("lo"))
    heard = await hear(provider)
    if heard.error is None:
        assert heard.text == "Hello"
    else:
        assert heard.error.fault is Fault.STREAM_BROKEN


@pytest.mark.parametrize(
    ("kind", "fault"),
    [
        ("overloaded_error", Fault.UNAVAILABLE),
        ("server_error", Fault.UNAVAILABLE),
        ("rate_limit_exceeded", Fault.RATE_LIMITED),
        ("context_length_exceeded", Fault.CONTEXT_TOO_LONG),
        ("insufficient_quota", Fault.REFUSED),
        ("error_of_the_future", Fault.STREAM_BROKEN),
    ],
)
async def test_errors_in_the_middle_of_an_answer(
    fake: FakeProvider, provider: Provider, kind: str, fault: Fault
) -> None:
    fake.reply(text("Hel"), error_event(kind, f"it was {KEY}"))
    error = await failure(provider)
    assert error.fault is fault
    assert "it was" in error.message


@pytest.mark.parametrize(
    ("status", "kind", "message", "fault"),
    [
        (400, "invalid_request_error", "bad tool", Fault.REFUSED),
        (400, "context_length_exceeded", "too long", Fault.CONTEXT_TOO_LONG),
        (400, "invalid_request_error", "prompt is too long: 9 > 8", Fault.CONTEXT_TOO_LONG),
        (401, "invalid_api_key", f"Incorrect API key provided: {KEY}", Fault.UNAUTHENTICATED),
        (403, "permission_error", "not yours", Fault.UNAUTHENTICATED),
        (404, "not_found_error", "model: a-model", Fault.MODEL_NOT_FOUND),
        (413, "request_too_large", "over 32 MB", Fault.CONTEXT_TOO_LONG),
        (422, "unprocessable", "odd", Fault.REFUSED),
        (429, "rate_limit_error", "slow down", Fault.RATE_LIMITED),
        (429, "insufficient_quota", "pay first", Fault.REFUSED),
        (500, "api_error", "oops", Fault.UNAVAILABLE),
        (503, "error", "down", Fault.UNAVAILABLE),
        (529, "overloaded_error", "Overloaded", Fault.UNAVAILABLE),
    ],
)
async def test_errors_before_an_answer(
    fake: FakeProvider, provider: Provider, status: int, kind: str, message: str, fault: Fault
) -> None:
    fake.fail(status, kind=kind, message=message)
    error = await failure(provider)
    assert error.fault is fault
    assert error.status == status
    assert f"HTTP {status}" in error.message
    assert message.removesuffix(KEY) in error.message
    assert len(fake.requests) == 1  # nothing is tried again behind our back


async def test_a_refused_key_is_told_with_where_it_came_from(
    fake: FakeProvider, provider: Provider, protocol: str
) -> None:
    fake.fail(401, kind="authentication_error", message=f"invalid x-api-key {KEY}")
    assert f"{company_of(protocol).upper()}_API_KEY" in (await failure(provider)).message


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after": "2"}, 2.0),
        ({"retry-after": "2", "retry-after-ms": "150"}, 0.15),
        ({}, None),
    ],
)
async def test_retry_after(
    fake: FakeProvider, provider: Provider, headers: dict[str, str], seconds: float | None
) -> None:
    fake.fail(429, kind="rate_limit_error", headers=headers)
    assert (await failure(provider)).retry_after == seconds


async def test_retry_after_as_a_date(fake: FakeProvider, provider: Provider) -> None:
    date = format_datetime(datetime.now(UTC) + timedelta(seconds=100), usegmt=True)
    fake.fail(503, headers={"Retry-After": date})
    wait = (await failure(provider)).retry_after
    assert wait is not None
    assert 90 < wait <= 100


@pytest.mark.parametrize(
    "body", [b"<html>Bad gateway</html>", b"", b"null", b"[1]", b'{"error": 5}']
)
async def test_bodies_that_are_no_error_of_the_protocol(
    fake: FakeProvider, provider: Provider, body: bytes
) -> None:
    fake.fail(502, body=body)
    error = await failure(provider)
    assert error.fault is Fault.UNAVAILABLE
    assert "HTTP 502" in error.message


async def test_nobody_there(provider: Provider, fake: FakeProvider) -> None:
    await fake.stop()
    error = await failure(provider)
    assert error.fault is Fault.UNAVAILABLE
    assert error.status is None
    await fake.start()


@pytest.mark.parametrize("begun", [True, False])
async def test_silence_times_out(fake: FakeProvider, provider: Provider, begun: bool) -> None:
    call = fake.reply(*([text("Hel")] if begun else []), stall())
    error = await failure(provider, replace(QUESTION, idle_timeout=0.2))
    assert error.fault is Fault.TIMEOUT
    assert "0.2 s" in error.message
    await call.disconnected()


async def test_cancelling_the_task_stops_the_call(fake: FakeProvider, provider: Provider) -> None:
    call = fake.reply(text("Hel"), stall())
    heard = asyncio.Event()

    async def listen() -> None:
        async for told in provider.stream(QUESTION):
            if isinstance(told, TextDelta):
                heard.set()

    task = asyncio.create_task(listen())
    async with asyncio.timeout(BOUND):
        await heard.wait()
    assert not (await call.received()).is_disconnected
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await call.disconnected()


async def test_cancelling_before_the_answer_begins_stops_the_call(
    fake: FakeProvider, provider: Provider
) -> None:
    call = fake.reply(stall())
    task = asyncio.create_task(hear(provider))
    await call.received()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await call.disconnected()


async def test_closing_the_iterator_stops_the_call(fake: FakeProvider, provider: Provider) -> None:
    call = fake.reply(text("Hel"), stall())
    async with aclosing(provider.stream(QUESTION)) as stream:
        async for heard in stream:
            if isinstance(heard, TextDelta):
                break
    await call.disconnected()


async def test_many_calls_at_once(fake: FakeProvider, provider: Provider) -> None:
    fake.default = paced(5)
    heard = await asyncio.gather(*(hear(provider) for _ in range(32)))
    assert {one.text for one in heard} == {"word " * 5}
    assert all(one.error is None for one in heard)


async def test_a_key_goes_to_the_provider_and_temperature_only_if_asked(
    fake: FakeProvider, provider: Provider
) -> None:
    fake.default = paced(1)
    await hear(provider, PLAIN_QUESTION)
    await hear(provider, replace(PLAIN_QUESTION, temperature=0.0))
    without, asked = fake.requests
    assert without.headers["authorization"] == f"Bearer {KEY}"
    assert "temperature" not in without.body
    assert "tools" not in without.body
    assert asked.body["temperature"] == 0.0


async def test_half_a_surrogate_pair_never_comes_out(
    fake: FakeProvider, provider: Provider
) -> None:
    fake.reply(text("a\ud83d", "\ude00b", "c\ud83d"))
    heard = await hear(provider)
    assert heard.text == "a\N{GRINNING FACE}bc\N{REPLACEMENT CHARACTER}"


async def test_finish_in_the_middle_of_the_script(fake: FakeProvider, provider: Provider) -> None:
    fake.reply(text("hi"), finish("length"))
    assert (await hear(provider)).events[-1] == Finished(FinishReason.LENGTH)


async def test_no_log_shows_the_key(
    fake: FakeProvider, provider: Provider, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG):
        fake.reply(text("hi"))
        fake.fail(401, kind="authentication_error", message=f"wrong key {KEY}")
        await hear(provider)
        await failure(provider)
    assert caplog.records  # the SDKs log what they do
    assert KEY not in caplog.text
