"""What callers get, and what is on the bill, whatever the provider does."""

from __future__ import annotations

import asyncio
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from genai_prices import Usage as PricedUsage
from genai_prices import calc_price

from analytics_service.client import (
    AsyncChat,
    FailedPreconditionError,
    InvalidArgumentError,
    MidcourseError,
    UnavailableError,
)
from midcourse.analytics.v1 import analytics_pb2, session_pb2, usage_pb2
from tests.support.analytics import (
    ANTHROPIC_MODEL,
    OPENAI_MODEL,
    XAI_MODEL,
    RunningAnalytics,
    running_analytics,
)
from tests.support.fake_provider import (
    Usage,
    cut,
    error_event,
    garbage,
    gate,
    interleaved,
    stall,
    text,
    tool_call,
)

MODELS = (OPENAI_MODEL, ANTHROPIC_MODEL)
PRICE_LISTS = {OPENAI_MODEL: "openai", ANTHROPIC_MODEL: "anthropic", XAI_MODEL: "x-ai"}


async def records(analytics: RunningAnalytics) -> list[usage_pb2.UsageRecord]:
    """All calls, the oldest first."""
    return [record async for record in analytics.client.list_usage()][::-1]


async def reserved(analytics: RunningAnalytics) -> Decimal:
    budget = await analytics.client.get_budget("day")
    return Decimal(budget.reserved)


def list_price(model: str, used: Usage) -> Decimal:
    """What genai-prices itself says, which counts cached tokens as input."""
    cached, written = used.cache_read or 0, used.cache_write or 0
    priced = PricedUsage(
        input_tokens=used.input + cached + written,
        output_tokens=used.output,
        cache_read_tokens=cached,
        cache_write_tokens=written,
    )
    return calc_price(priced, model, provider_id=PRICE_LISTS[model]).total_price


@pytest.mark.parametrize(
    ("model", "used"),
    [
        (OPENAI_MODEL, Usage(input=1_234, output=567, cache_read=89, reasoning=400)),
        (OPENAI_MODEL, Usage(input=300_000, output=1_000)),
        (ANTHROPIC_MODEL, Usage(input=1_234, output=567, cache_read=89, cache_write=21)),
        (XAI_MODEL, Usage(input=1_234, output=567, reasoning=400, reasoning_beside=True)),
    ],
)
async def test_the_bill_is_the_price_list_s_to_the_last_digit(
    analytics: RunningAnalytics, model: str, used: Usage
) -> None:
    analytics.fake.reply(text("It ", "spiked."), usage=used)
    answer = await analytics.client.ask("what happened?", model=model)
    assert answer.text == "It spiked."
    assert answer.cost == list_price(model, used)
    (record,) = await records(analytics)
    assert Decimal(record.cost) == answer.cost
    assert record.tokens.input == used.input
    assert record.tokens.output == used.output
    assert record.rates.source.startswith("genai-prices ")
    assert record.outcome == usage_pb2.CALL_OUTCOME_COMPLETED
    assert 0 < record.time_to_first_token <= record.duration
    assert await reserved(analytics) == 0


@pytest.mark.parametrize("model", MODELS)
async def test_rate_limits_are_waited_out_and_billed_once(
    analytics: RunningAnalytics, model: str
) -> None:
    analytics.fake.fail(429, headers={"retry-after": "0.01"}, kind="rate_limit_exceeded")
    analytics.fake.reply(text("ok"), usage=Usage(input=100, output=10))
    async with analytics.client.chat("hello?", model=model) as chat:
        events = [event async for event in chat]
    assert [event.WhichOneof("event") for event in events] == [
        "started",
        "usage",
        "retry",
        "text_delta",
        "usage",
        "done",
    ]
    first, second = await records(analytics)
    assert (first.outcome, first.attempt) == (usage_pb2.CALL_OUTCOME_FAILED, 1)
    assert first.cost == "0"  # an HTTP error is charged by nobody
    assert (second.outcome, second.attempt) == (usage_pb2.CALL_OUTCOME_COMPLETED, 2)
    assert Decimal(second.cost) == list_price(model, Usage(input=100, output=10))
    assert len(analytics.fake.requests) == 2


@pytest.mark.parametrize("model", MODELS)
async def test_a_provider_that_keeps_failing_is_given_up(
    analytics: RunningAnalytics, model: str
) -> None:
    for _ in range(3):
        analytics.fake.fail(500)
    with pytest.raises(UnavailableError) as failed:
        await analytics.client.ask("hello?", model=model, request_id="once")
    assert failed.value.reason == "PROVIDER_UNAVAILABLE"
    assert "3 attempts" in failed.value.message
    assert len(analytics.fake.requests) == 3
    assert [record.cost for record in await records(analytics)] == ["0"] * 3
    assert await reserved(analytics) == 0


async def collect(chat: AsyncChat, into: list[analytics_pb2.ChatResponse]) -> None:
    async with chat:
        async for event in chat:
            into.append(event)  # noqa: PERF401 - what came before a failure is to be seen


BROKEN: dict[str, tuple[list[Any], str]] = {
    "truncated": ([text("half an "), cut()], "PROVIDER_STREAM_BROKEN"),
    "garbage": ([text("half an "), garbage()], "PROVIDER_STREAM_BROKEN"),
    "overloaded": (
        [text("half an "), error_event("overloaded_error", "too much to do")],
        "PROVIDER_UNAVAILABLE",
    ),
}


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("how", BROKEN)
async def test_a_stream_that_breaks_is_a_failure_with_a_flagged_guess(
    analytics: RunningAnalytics, model: str, how: str
) -> None:
    parts, reason = BROKEN[how]
    analytics.fake.reply(*parts)
    seen: list[analytics_pb2.ChatResponse] = []
    chat = analytics.client.chat("hello?", model=model)
    with pytest.raises(UnavailableError) as failed:
        await collect(chat, seen)
    assert failed.value.reason == reason
    assert seen[-1].error.reason == reason
    (record,) = await records(analytics)  # its first token had come: no second attempt
    assert record.outcome == usage_pb2.CALL_OUTCOME_FAILED
    assert not record.HasField("cost")
    assert record.unknown_reason
    assert Decimal(record.estimated_cost) > 0
    started = seen[0].started
    (_, message) = [m async for m in analytics.client.list_messages(started.session)]
    assert message.state == session_pb2.MESSAGE_STATE_FAILED
    assert message.parts[0].text == "half an "
    assert message.unknown_cost_calls == 1
    assert await reserved(analytics) == 0


@pytest.mark.parametrize("model", MODELS)
async def test_a_provider_that_falls_silent_is_left(tmp_path: Path, model: str) -> None:
    async with running_analytics(tmp_path, idle_timeout=0.2) as analytics:
        call = analytics.fake.reply(text("well"), stall())
        with pytest.raises(UnavailableError) as failed:
            await analytics.client.ask("hello?", model=model)
        assert failed.value.reason == "PROVIDER_TIMEOUT"
        await call.disconnected()


@pytest.mark.parametrize("model", MODELS)
async def test_without_a_usage_report_the_cost_is_unknown_not_zero(
    analytics: RunningAnalytics, model: str
) -> None:
    analytics.fake.reply(text("fine"), usage=None)
    answer = await analytics.client.ask("hello?", model=model)
    assert answer.text == "fine"
    assert answer.cost is None
    (record,) = await records(analytics)
    assert not record.HasField("cost")
    assert "token counts" in record.unknown_reason
    assert Decimal(record.estimated_cost) > 0
    session = await analytics.client.get_session(answer.session)
    assert session.unknown_cost_calls == 1
    usage = await analytics.client.get_usage()
    assert usage.total.unknown_cost_calls == 1
    assert Decimal(usage.total.cost) == 0
    budget = await analytics.client.get_budget("day")
    # As much as it may have cost.
    assert Decimal(budget.spent) == Decimal(budget.estimated) > Decimal(record.estimated_cost)


async def test_another_model_than_asked_for_is_said_and_charged(
    analytics: RunningAnalytics,
) -> None:
    used = Usage(input=1_000, output=100)
    analytics.fake.reply(text("hi"), usage=used, model="gpt-6-astra")
    answer = await analytics.client.ask("hello?", model=OPENAI_MODEL)
    assert answer.model.used_model == OPENAI_MODEL
    assert answer.model.served_model == "gpt-6-astra"
    assert "gpt-6-astra" in answer.model.difference
    PRICE_LISTS["gpt-6-astra"] = "openai"
    assert answer.cost == list_price("gpt-6-astra", used)
    analytics.fake.reply(text("hi"), usage=used, model="nobody-knows-this")
    answer = await analytics.client.ask("hello?", model=OPENAI_MODEL)
    assert answer.cost is None
    assert "nobody-knows-this" in (await records(analytics))[-1].unknown_reason


async def test_a_dated_snapshot_is_no_difference(analytics: RunningAnalytics) -> None:
    analytics.fake.reply(text("hi"), model="gpt-4o-mini-2024-07-18")
    answer = await analytics.client.ask("hello?", model="gpt-4o-mini")
    assert answer.model.difference == ""
    assert answer.model.served_model == "gpt-4o-mini-2024-07-18"
    assert "2027-01-14" in answer.model.notice


@pytest.mark.parametrize("model", MODELS)
async def test_malformed_calls_of_tools_go_back_to_the_model(
    analytics: RunningAnalytics, model: str
) -> None:
    analytics.fake.reply(
        interleaved(
            tool_call("get_job", '{"job": "demo', call_id="a"),
            tool_call("no_such_tool", {}, call_id="b"),
        )
    )
    second = analytics.fake.reply(text("I could not look."))
    answer = await analytics.client.ask("hello?", model=model)
    assert answer.text == "I could not look."
    calls = [part.tool_call for part in answer.message.parts if part.HasField("tool_call")]
    assert [call.tool for call in calls] == ["get_job", "no_such_tool"]
    assert not calls[0].HasField("arguments")
    assert all(call.error for call in calls)
    assert "list_jobs" in calls[1].error  # what there is instead
    said = str((await second.received()).body)
    assert "list_jobs" in said
    assert [record.round for record in await records(analytics)] == [0, 1]


@pytest.mark.parametrize("model", MODELS)
async def test_leaving_the_stream_stops_the_provider_and_accounts(
    analytics: RunningAnalytics, model: str
) -> None:
    never = asyncio.Event()
    call = analytics.fake.reply(text("Once upon", " a time"), gate(never))
    async with analytics.client.chat("tell me", model=model) as chat:
        async for event in chat:
            if event.text_delta == " a time":
                break
    await call.disconnected()
    assert chat.started is not None
    message = await ended(analytics, chat.started.message)
    assert message.state == session_pb2.MESSAGE_STATE_CANCELLED
    assert message.parts[0].text == "Once upon a time"
    (record,) = await records(analytics)
    assert record.outcome == usage_pb2.CALL_OUTCOME_CANCELLED
    assert not record.HasField("cost")
    assert Decimal(record.estimated_cost) > 0
    assert await reserved(analytics) == 0


async def test_cancel_chat_stops_an_answer_from_elsewhere(analytics: RunningAnalytics) -> None:
    never = asyncio.Event()
    call = analytics.fake.reply(text("Once"), gate(never))
    async with analytics.client.chat("tell me") as chat:
        async for event in chat:
            if event.text_delta and chat.started is not None:
                message = await analytics.client.cancel_chat(chat.started.session)
                assert message.state == session_pb2.MESSAGE_STATE_CANCELLED
    await call.disconnected()
    assert chat.message is not None
    assert chat.message.state == session_pb2.MESSAGE_STATE_CANCELLED
    again = await analytics.client.cancel_chat(chat.message.name)
    assert again == chat.message


async def ended(analytics: RunningAnalytics, name: str) -> session_pb2.Message:
    """Waits until an answer is no longer being written."""
    session = name.partition("/messages/")[0]
    async with asyncio.timeout(10):
        while True:
            messages = [m async for m in analytics.client.list_messages(session)]
            (message,) = [m for m in messages if m.name == name]
            if message.state != session_pb2.MESSAGE_STATE_RUNNING:
                return message
            await asyncio.sleep(0.01)


async def test_a_length_limit_truncates_and_says_so(analytics: RunningAnalytics) -> None:
    call = analytics.fake.reply(text("Half"), finish="length")
    answer = await analytics.client.ask("tell me", max_output_tokens=16)
    assert answer.message.state == session_pb2.MESSAGE_STATE_TRUNCATED
    assert (await call.received()).body["max_output_tokens"] == 16
    assert "temperature" not in (await call.received()).body


async def test_a_declined_answer_is_a_failure(analytics: RunningAnalytics) -> None:
    analytics.fake.reply(text("I"), finish="content_filter")
    with pytest.raises(FailedPreconditionError) as failed:
        await analytics.client.ask("tell me")
    assert failed.value.reason == "PROVIDER_REFUSED"


async def test_a_wrong_key_is_named_without_showing_it(analytics: RunningAnalytics) -> None:
    analytics.fake.fail(401, kind="invalid_api_key", message="Incorrect API key: sk-test-1")
    with pytest.raises(FailedPreconditionError) as failed:
        await analytics.client.ask("tell me")
    assert failed.value.reason == "PROVIDER_UNAUTHENTICATED"
    assert "sk-test-1" not in str(failed.value)
    assert len(analytics.fake.requests) == 1
    (record,) = await records(analytics)
    assert "sk-test-1" not in record.error


async def test_failover_before_the_first_token_only(tmp_path: Path) -> None:
    async with running_analytics(
        tmp_path, failover=[ANTHROPIC_MODEL, OPENAI_MODEL], attempts=1
    ) as analytics:
        analytics.fake.fail(503)
        analytics.fake.reply(text("from the other"))
        answer = await analytics.client.ask("hello?")
        assert answer.text == "from the other"
        assert answer.model.requested_model == OPENAI_MODEL
        assert answer.model.used_model == ANTHROPIC_MODEL
        assert OPENAI_MODEL in answer.model.difference
        first, second = await records(analytics)
        assert (first.used_model, second.used_model) == (OPENAI_MODEL, ANTHROPIC_MODEL)
        assert second.requested_model == OPENAI_MODEL
        analytics.fake.reply(text("half"), cut())
        with pytest.raises(UnavailableError):
            await analytics.client.ask("hello?")
        assert len(analytics.fake.requests) == 3


async def test_the_same_request_id_is_answered_and_billed_once(
    analytics: RunningAnalytics,
) -> None:
    analytics.fake.reply(tool_call("list_jobs", {}))
    analytics.fake.reply(text("once"))
    first = await analytics.client.ask("hello?", request_id="r1")
    second = await analytics.client.ask("hello?", request_id="r1")
    assert second.replayed
    assert second.text == first.text == "once"
    assert second.message == first.message
    assert len(analytics.fake.requests) == 2
    with pytest.raises(MidcourseError) as refused:
        await analytics.client.ask("something else?", request_id="r1")
    assert refused.value.reason == "REQUEST_ID_REUSED"


async def test_one_answer_at_a_time_in_a_session(analytics: RunningAnalytics) -> None:
    never = asyncio.Event()
    analytics.fake.reply(text("Once"), gate(never))
    async with analytics.client.chat("tell me") as chat:
        await anext(chat)
        assert chat.started is not None
        with pytest.raises(FailedPreconditionError) as busy:
            await analytics.client.ask("and?", session=chat.started.session)
        assert busy.value.reason == "SESSION_BUSY"
        assert "message 2" in busy.value.message


async def test_the_choice_of_a_model_persists(analytics: RunningAnalytics) -> None:
    for _ in range(3):
        analytics.fake.reply(text("hi"))
    first = await analytics.client.ask("one", model=ANTHROPIC_MODEL)
    second = await analytics.client.ask("two", session=first.session)
    assert second.model.used_model == ANTHROPIC_MODEL
    await analytics.client.update_session(first.session, model="")
    third = await analytics.client.ask("three", session=first.session)
    assert third.model.used_model == OPENAI_MODEL
    body = analytics.fake.requests[-1].body
    assert body["instructions"]
    assert [item["role"] for item in body["input"]] == [
        "user", "assistant", "user", "assistant", "user",
    ]  # fmt: skip


async def test_retired_models_are_refused_or_followed(analytics: RunningAnalytics) -> None:
    with pytest.raises(FailedPreconditionError) as refused:
        await analytics.client.ask("hello?", model="claude-3-5-sonnet")
    assert refused.value.reason == "MODEL_RETIRED"
    assert refused.value.metadata["successor"] == "claude-sonnet-5-5"
    analytics.fake.reply(text("hi"))
    answer = await analytics.client.ask("hello?", model="claude-3-5-sonnet", follow_successor=True)
    assert answer.model.requested_model == "claude-3-5-sonnet"
    assert answer.model.used_model == "claude-sonnet-5-5"
    assert answer.model.difference
    assert len(analytics.fake.requests) == 1


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"session": "nonsense/1"}, "session"),
        ({"max_output_tokens": -1}, "max_output_tokens"),
        ({"temperature": 3.0}, "temperature"),
        ({"jobs": ["jobs/a/b"]}, "jobs[0]"),
        ({"request_id": "x" * 129}, "request_id"),
    ],
)
async def test_wrong_requests_name_the_field(
    analytics: RunningAnalytics, options: dict[str, Any], field: str
) -> None:
    with pytest.raises(InvalidArgumentError) as wrong:
        await analytics.client.ask("hello?", **options)
    assert [violation.field for violation in wrong.value.violations] == [field]
    assert await records(analytics) == []


async def test_an_empty_question_is_refused(analytics: RunningAnalytics) -> None:
    with pytest.raises(InvalidArgumentError):
        await analytics.client.ask("  \n")
