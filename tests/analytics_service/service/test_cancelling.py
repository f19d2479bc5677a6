"""Whenever an answer is stopped, it is recorded, and every call is settled once."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Coroutine, Generator
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from analytics_service.chat.conversation import MessageState
from analytics_service.chat.plan import Caller, Question
from analytics_service.chat.turn import Turn
from analytics_service.providers.retry import RetryPolicy
from analytics_service.usage.records import BudgetKey, CallOutcome, Period, UsageFilter
from tests.support.analytics import ANTHROPIC_MODEL, RunningAnalytics, running_analytics, until
from tests.support.fake_provider import BOUND, Reply, Request, text, tool_call

ANN = Caller("ann")
_DAY = BudgetKey(None, None, Period.DAY)

MOMENTS = ("while it waits", "as it wakes")
"""When to act: as the task has begun to wait, or when what it waits for has come."""


MORE = 4
"""How many answers more to get after one was not stopped: the network's pieces vary."""


class Stepped(Coroutine[Any, Any, Any]):
    """A coroutine that acts when it comes to wait for the n-th time."""

    def __init__(
        self, coroutine: Coroutine[Any, Any, Any], at: int, moment: str, act: Callable[[], object]
    ) -> None:
        self.steps = 0
        self._coroutine = coroutine
        self._at = at
        self._moment = moment
        self._act = act

    def send(self, value: Any) -> Any:
        return self._counted(self._coroutine.send(value))

    def throw(self, *error: Any) -> Any:
        return self._counted(self._coroutine.throw(*error))

    def close(self) -> None:
        self._coroutine.close()

    def __await__(self) -> Generator[Any, Any, Any]:
        raise NotImplementedError  # a task drives it

    def _counted(self, future: asyncio.Future[Any] | None) -> Any:
        self.steps += 1
        if self.steps == self._at:
            if self._moment == "as it wakes" and future is not None:
                # The task itself is going to be told after this.
                future.add_done_callback(lambda _: self._act())
            else:
                asyncio.get_running_loop().call_soon(self._act)
        return future


def a_model_with_a_tool(request: Request) -> Reply:
    if "tool_result" in str(request.body["messages"]):
        return Reply((text("It ", "spiked."),))
    return Reply((text("Let me see. "), tool_call("no_such_tool")))


@pytest.fixture
async def analytics(tmp_path: Path) -> AsyncIterator[RunningAnalytics]:
    async with running_analytics(tmp_path, default_model=ANTHROPIC_MODEL) as running:
        chat = running.service.chat
        chat._around = replace(chat._around, retry=RetryPolicy(3, initial=1e-4, maximum=1e-4))
        running.fake.default = a_model_with_a_tool
        await running.service.chat._store.set_budget(_DAY, Decimal(1_000), running.service._clock())
        yield running


async def settled(analytics: RunningAnalytics) -> None:
    """Waits until nothing is going on."""
    chat = analytics.service.chat
    await until(lambda: not chat._running and not chat._beginning)


async def check_books(analytics: RunningAnalytics) -> None:
    """All calls are settled, once; no answer is being written; no provider is still writing."""
    store, now = analytics.service.chat._store, analytics.service._clock()
    calls = await store.list_usage(UsageFilter(), None, 10_000)
    assert all(call.outcome is not CallOutcome.RUNNING for call in calls)
    budget = await store.get_budget(_DAY, now)
    assert budget.reserved == 0
    assert budget.spent == sum(call.charge for call in calls)
    for session in await store.list_sessions("anonymous", None, 10):
        message = await store.get_message(session.id, None)
        assert message is not None
        assert message.state in (MessageState.CANCELLED, MessageState.COMPLETE)
        assert message.ended is not None
        await store.delete_session(session.id, None)  # refused while busy
    asked = analytics.fake.requests
    await until(lambda: all(each._done.is_set() or each._gone.is_set() for each in asked))
    analytics.fake.requests.clear()
    analytics.fake._queue.clear()


async def ask(analytics: RunningAnalytics) -> None:
    """What the servicer does."""
    chat = analytics.service.chat
    turn = await chat.start(Question("what happened?"), ANN)
    try:
        async for _ in turn.events:
            pass
    finally:
        chat.abandon(turn)


@contextlib.contextmanager
def stepping(
    monkeypatch: pytest.MonkeyPatch, at: int, moment: str
) -> Generator[list[Stepped], None, None]:
    """Stops turns when they come to wait for the n-th time."""
    made: list[Stepped] = []
    plain = Turn._run

    def run(turn: Turn) -> Any:
        stepped = Stepped(plain(turn), at, moment, lambda: turn.stop(MessageState.CANCELLED))
        made.append(stepped)
        return stepped

    with monkeypatch.context() as patch:
        patch.setattr(Turn, "_run", run)
        yield made


@pytest.mark.parametrize("moment", MOMENTS)
async def test_an_answer_may_be_stopped_at_any_moment(
    analytics: RunningAnalytics, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    states = set()
    at, unstopped = 1, 0
    while unstopped < MORE:
        analytics.fake.fail(500)
        with stepping(monkeypatch, at, moment) as made:
            async with asyncio.timeout(BOUND):
                turn = await analytics.service.chat.start(Question("what happened?"), ANN)
                assert isinstance(turn, Turn)
                async for _ in turn.events:
                    pass
        await settled(analytics)
        states.add(turn.answer.state)
        await check_books(analytics)
        unstopped = unstopped + 1 if made[0].steps < at else 0
        at += 1
    assert at > 15
    assert states == {MessageState.CANCELLED, MessageState.COMPLETE}


@pytest.mark.parametrize("moment", MOMENTS)
async def test_a_caller_may_leave_at_any_moment(analytics: RunningAnalytics, moment: str) -> None:
    tasks: list[asyncio.Task[None]] = []
    at, unstopped = 1, 0
    while unstopped < MORE:
        stepped = Stepped(ask(analytics), at, moment, lambda: [each.cancel() for each in tasks])
        tasks.append(task := asyncio.create_task(stepped))
        async with asyncio.timeout(BOUND):
            await asyncio.wait([task])
        assert task.cancelled() or task.exception() is None
        await settled(analytics)
        await check_books(analytics)
        unstopped = unstopped + 1 if stepped.steps < at else 0
        at += 1
    assert at > 5


async def test_an_answer_may_be_stopped_before_its_task_has_run(
    analytics: RunningAnalytics,
) -> None:
    turn = await analytics.service.chat._begin(Question("what happened?"), ANN)
    assert isinstance(turn, Turn)
    turn.stop(MessageState.CANCELLED)
    async with asyncio.timeout(BOUND):
        events = [event async for event in turn.events]
    assert events
    assert turn.answer.state is MessageState.CANCELLED
    await settled(analytics)
    await check_books(analytics)


async def test_an_answer_that_is_being_recorded_is_recorded(
    analytics: RunningAnalytics, monkeypatch: pytest.MonkeyPatch
) -> None:
    store: Any = analytics.service.chat._store
    plain, begun, go_on = store.end_turn, asyncio.Event(), asyncio.Event()

    async def slow(*args: Any) -> Any:
        begun.set()
        await go_on.wait()
        return await plain(*args)

    monkeypatch.setattr(store, "end_turn", slow)
    turn = await analytics.service.chat.start(Question("what happened?"), ANN)
    assert isinstance(turn, Turn)
    await begun.wait()
    turn.stop(MessageState.CANCELLED)
    await asyncio.sleep(0)
    go_on.set()
    async with asyncio.timeout(BOUND):
        await turn.wait()
    assert turn.answer.state is MessageState.COMPLETE  # it was whole by then
    await settled(analytics)
    await check_books(analytics)


async def test_what_is_cancelled_below_an_answer_is_a_failure(
    analytics: RunningAnalytics, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A library that cancels something of its own must not leave the answer unrecorded."""

    class Provider:
        async def stream(self, request: Any) -> Any:
            for event in list[Any]():
                yield event
            raise asyncio.CancelledError

    monkeypatch.setattr(analytics.service.providers, "get", lambda _: Provider())
    turn = await analytics.service.chat.start(Question("what happened?"), ANN)
    assert isinstance(turn, Turn)
    async with asyncio.timeout(BOUND):
        await turn.wait()
    assert turn.answer.state is MessageState.FAILED
    assert turn.failure is not None
    assert turn.failure.reason == "CHAT_FAILED"
