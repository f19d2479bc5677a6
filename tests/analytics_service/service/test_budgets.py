"""Budgets hold whatever happens, for any number of callers and of replicas."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from analytics_service.client import AsyncClient, MidcourseError, ResourceExhaustedError
from analytics_service.providers.retry import RetryPolicy
from midcourse.analytics.v1 import session_pb2, usage_pb2
from tests.support.analytics import (
    ANTHROPIC_MODEL,
    OPENAI_MODEL,
    RunningAnalytics,
    running_analytics,
    until,
)
from tests.support.callers import Names, named
from tests.support.fake_provider import (
    Reply,
    Usage,
    cut,
    fake_provider,
    gate,
    text,
    tool_call,
)

CALLS = 200
FITTING = 12
"""How many calls a limit leaves room for at the same time."""


class Clock:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.now = datetime(2026, 11, 23, 12, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.now


@pytest.fixture
async def analytics(tmp_path: Path) -> AsyncIterator[RunningAnalytics]:
    """It is noon: no budget of the day ends in the middle of a test."""
    began = datetime.now(UTC)
    noon = began.replace(hour=12)
    async with running_analytics(
        tmp_path, idle_timeout=5.0, clock=lambda: noon + (datetime.now(UTC) - began)
    ) as running:
        yield running


async def reservation(analytics: RunningAnalytics, model: str = ANTHROPIC_MODEL) -> Decimal:
    """What one first question to a model sets aside."""
    never = asyncio.Event()
    analytics.fake.reply(text("x"), gate(never))
    async with analytics.client.chat("hello?", model=model) as chat:
        await anext(chat)
        set_aside = Decimal((await analytics.client.get_budget("day")).reserved)
        assert chat.started is not None
        await analytics.client.cancel_chat(chat.started.session)
    assert set_aside > 0
    assert Decimal((await analytics.client.get_budget("day")).reserved) == 0
    return set_aside


async def asked(client: AsyncClient) -> str:
    """Asks; returns "answered", or why not."""
    try:
        answer = await client.ask("hello?", model=ANTHROPIC_MODEL)
    except ResourceExhaustedError as refused:
        return refused.message
    assert answer.text == "hi"
    return "answered"


@pytest.mark.parametrize("replicas", [1, 2])
async def test_calls_at_once_never_overrun_a_budget(
    tmp_path: Path, replicas: int, request: pytest.FixtureRequest
) -> None:
    database = request.getfixturevalue("postgres_address") if replicas > 1 else None
    async with contextlib.AsyncExitStack() as stack:
        fake = await stack.enter_async_context(fake_provider())
        services = [
            await stack.enter_async_context(
                running_analytics(tmp_path, fake=fake, database=database)
            )
            for _ in range(replicas)
        ]
        one = services[0]
        each = await reservation(one)
        spent = Decimal((await one.client.get_budget("day")).spent)
        limit = spent + FITTING * each
        await one.client.set_budget(limit, "day")
        opened = asyncio.Event()
        # Each answer costs a good part of what was set aside for it.
        fake.default = Reply((gate(opened), text("hi")), Usage(input=2_000, output=4_000))
        watching = asyncio.create_task(watch(services[-1].client, limit))
        before = len(fake.requests)
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(asked(services[n % replicas].client)) for n in range(CALLS)]
            await until(lambda: sum(task.done() for task in tasks) >= CALLS - FITTING, 30.0)
            budget = await one.client.get_budget("day")
            assert Decimal(budget.reserved) == FITTING * each
            opened.set()
        assert sum(task.result() == "answered" for task in tasks) == FITTING
        assert len(fake.requests) - before == FITTING  # nothing was sent for those refused
        refusal = next(task.result() for task in tasks if task.result() != "answered")
        assert str(limit.normalize()) in refusal
        assert "UTC" in refusal
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)
        assert watching.cancelled(), watching.exception()
        budget = await one.client.get_budget("day")
        assert Decimal(budget.reserved) == 0
        assert Decimal(budget.spent) <= limit
        usage = await one.client.get_usage()
        assert Decimal(budget.spent) == Decimal(usage.total.cost) + each  # the one cancelled first


async def watch(client: AsyncClient, limit: Decimal) -> None:
    """Looks again and again whether the budget is kept."""
    while True:
        budget = await client.get_budget("day")
        assert Decimal(budget.spent) + Decimal(budget.reserved) <= limit
        await asyncio.sleep(0.02)  # between two looks


async def test_a_refusal_names_the_budget_what_is_left_and_when_it_ends(
    analytics: RunningAnalytics,
) -> None:
    await analytics.client.set_budget("0.0001", "month", model=ANTHROPIC_MODEL)
    with pytest.raises(ResourceExhaustedError) as refused:
        await analytics.client.ask("hello?", model=ANTHROPIC_MODEL)
    error = refused.value
    assert error.reason == "BUDGET_EXCEEDED"
    assert error.metadata["limit"] == "0.0001"
    assert error.metadata["model"] == ANTHROPIC_MODEL
    assert error.metadata["period"] == "month"
    assert (error.metadata["spent"], error.metadata["reserved"]) == ("0", "0")
    assert Decimal(error.metadata["needed"]) > Decimal("0.0001")
    end = datetime.fromisoformat(error.metadata["end"])
    assert end > datetime.now(UTC)
    assert end.day == 1
    for said in ("0.0001", ANTHROPIC_MODEL, "month", f"{end:%Y-%m-%d %H:%M} UTC"):
        assert said in error.message
    assert analytics.fake.requests == []
    assert [each async for each in analytics.client.list_sessions()] == []
    assert [each async for each in analytics.client.list_usage()] == []


@pytest.mark.parametrize("period", ["day", "month"])
async def test_a_model_s_budget_is_its_own(analytics: RunningAnalytics, period: Any) -> None:
    analytics.fake.default = Reply((text("hi"),))
    await analytics.client.set_budget(0, period, model=ANTHROPIC_MODEL)
    await analytics.client.ask("hello?", model=OPENAI_MODEL)
    with pytest.raises(ResourceExhaustedError):
        await analytics.client.ask("hello?", model=ANTHROPIC_MODEL)
    lifted = await analytics.client.set_budget(None, period, model=ANTHROPIC_MODEL)
    assert not lifted.HasField("limit")
    await analytics.client.ask("hello?", model=ANTHROPIC_MODEL)


async def test_a_caller_s_budget_is_its_own(tmp_path: Path) -> None:
    async with running_analytics(tmp_path, authenticator=Names()) as analytics:
        analytics.fake.default = Reply((text("hi"),))
        ann, eve, root = (named(analytics.client, name) for name in ("ann", "eve", "root*admin"))
        await root.set_budget(0, "day", principal="eve")
        await ann.ask("hello?")
        with pytest.raises(ResourceExhaustedError) as refused:
            await eve.ask("hello?")
        assert refused.value.metadata["principal"] == "eve"
        await root.set_budget(None, "day", principal="eve")
        await eve.ask("hello?")


async def test_spans_begin_anew(tmp_path: Path) -> None:
    clock = Clock()
    async with running_analytics(tmp_path, clock=clock) as analytics:
        analytics.fake.default = Reply((text("hi"),), Usage(input=10, output=10))
        client = analytics.client
        cost = (await client.ask("hello?", model=ANTHROPIC_MODEL)).cost
        assert cost
        # What was spent before counts: the day's is used up at once, the month's is not.
        day = await client.set_budget(cost, "day")
        month = await client.set_budget(10 * cost + 1, "month")
        assert Decimal(day.spent) == Decimal(month.spent) == cost
        with pytest.raises(ResourceExhaustedError) as refused:
            await client.ask("hello?", model=ANTHROPIC_MODEL)
        assert refused.value.metadata["end"] == "2026-11-24T00:00:00+00:00"
        clock.now = datetime(2026, 11, 24, tzinfo=UTC)
        day = await client.get_budget("day")
        assert (day.spent, day.start_time.ToDatetime(UTC)) == ("0", clock.now)
        await client.set_budget(1, "day")
        await client.ask("hello?", model=ANTHROPIC_MODEL)
        assert Decimal((await client.get_budget("month")).spent) == 2 * cost
        await client.set_budget(2 * cost, "month")
        with pytest.raises(ResourceExhaustedError) as refused:
            await client.ask("hello?", model=ANTHROPIC_MODEL)
        assert refused.value.metadata["end"] == "2026-12-01T00:00:00+00:00"
        clock.now += timedelta(days=7)
        assert (await client.get_budget("month")).spent == "0"
        await client.set_budget(1, "month")
        await client.ask("hello?", model=ANTHROPIC_MODEL)


async def test_a_budget_that_ends_in_the_middle_of_an_answer(
    analytics: RunningAnalytics,
) -> None:
    each = await reservation(analytics)
    spent = Decimal((await analytics.client.get_budget("day")).spent)
    await analytics.client.set_budget(spent + each, "day")
    analytics.fake.reply(
        text("Let me see. "), tool_call("no_such_tool"), usage=Usage(input=2_000, output=200)
    )
    chat = analytics.client.chat("hello?", model=ANTHROPIC_MODEL)
    with pytest.raises(ResourceExhaustedError) as refused:
        await chat.result()
    assert refused.value.reason == "BUDGET_EXCEEDED"
    assert chat.started is not None
    _, answer = [m async for m in analytics.client.list_messages(chat.started.session)]
    assert answer.state == session_pb2.MESSAGE_STATE_FAILED
    assert answer.error.reason == "BUDGET_EXCEEDED"
    said, call = answer.parts
    assert said.text == "Let me see. "
    assert call.tool_call.tool == "no_such_tool"
    records = [record async for record in analytics.client.list_usage()]
    assert records[0].outcome == usage_pb2.CALL_OUTCOME_COMPLETED
    assert Decimal(records[0].cost) == Decimal(answer.cost) > 0
    budget = await analytics.client.get_budget("day")
    assert Decimal(budget.reserved) == 0
    assert Decimal(budget.spent) == spent + Decimal(answer.cost)


async def test_whoever_leaves_before_the_first_token_pays_for_what_may_have_been_thought(
    analytics: RunningAnalytics,
) -> None:
    each = await reservation(analytics)
    client = analytics.client
    await client.set_budget(Decimal((await client.get_budget("day")).spent) + each, "day")
    asked = analytics.fake.reply(gate(asyncio.Event()))
    async with client.chat("hello?", model=ANTHROPIC_MODEL) as chat:
        await anext(chat)
        await asked.received()
    await until(lambda: not analytics.service.chat._running)
    budget = await client.get_budget("day")
    assert Decimal(budget.spent) == Decimal(budget.estimated) == 2 * each
    (record, _) = [record async for record in client.list_usage()]
    assert Decimal(record.estimated_cost) < each  # a guess is shown as one
    with pytest.raises(ResourceExhaustedError):
        await client.ask("hello?", model=ANTHROPIC_MODEL)


@pytest.fixture
async def hasty(tmp_path: Path) -> AsyncIterator[RunningAnalytics]:
    async with running_analytics(tmp_path, idle_timeout=0.3) as running:
        chat = running.service.chat
        chat._around = replace(chat._around, retry=RetryPolicy(3, initial=1e-4, maximum=1e-4))
        yield running


def ways_to_fail(analytics: RunningAnalytics) -> Iterator[None]:
    """Scripts the fake, one way after the other."""
    fake = analytics.fake
    for status in (500, 429, 401):
        for _ in range(3 if status != 401 else 1):
            fake.fail(status)
        yield
    fake.reply(text("half"), cut())
    yield
    fake.reply(text("half"), gate(asyncio.Event()))  # falls silent
    yield


async def test_whatever_fails_nothing_stays_reserved(hasty: RunningAnalytics) -> None:
    limit = Decimal(5)
    await hasty.client.set_budget(limit, "day")
    for _ in ways_to_fail(hasty):
        with pytest.raises(MidcourseError):
            await hasty.client.ask("hello?", model=ANTHROPIC_MODEL)
        budget = await hasty.client.get_budget("day")
        assert Decimal(budget.reserved) == 0
        usage = await hasty.client.get_usage()
        assert Decimal(budget.spent) >= Decimal(usage.total.estimated_cost)
        assert Decimal(budget.estimated) == Decimal(budget.spent)
    hasty.fake.reply(text("Once"), gate(asyncio.Event()))
    async with hasty.client.chat("hello?", model=ANTHROPIC_MODEL) as chat:
        async for event in chat:
            if event.text_delta:
                assert Decimal((await hasty.client.get_budget("day")).reserved) > 0
                break
    await until(lambda: not hasty.service.chat._running)
    assert Decimal((await hasty.client.get_budget("day")).reserved) == 0
    hasty.fake.reply(text("hi"))
    await hasty.client.ask("hello?", model=ANTHROPIC_MODEL)
