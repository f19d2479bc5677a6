"""Many answers at once, slow readers and readers that leave."""

from __future__ import annotations

import asyncio
import gc
from collections import Counter
from pathlib import Path
from typing import Any

import grpc
import pytest

from analytics_service.chat.stream import MAX_WAITING
from midcourse.analytics.v1 import analytics_pb2 as pb
from midcourse.analytics.v1 import analytics_pb2_grpc, session_pb2, usage_pb2
from tests.support.analytics import ANTHROPIC_MODEL, RunningAnalytics, running_analytics, until
from tests.support.fake_provider import BOUND, Reply, Request, Usage, gate, text

CHATS = 64
WORDS = 40
LONG = [f"{number:04}".ljust(2_500, ".") for number in range(1_200)]
"""An answer that fills every buffer on its way to a reader who does not read."""


def answer_for(request: Request) -> Reply:
    """Words that only this question's answer has."""
    said = str(request.body["messages"][-1]["content"])
    number = said.rpartition("#")[2].split("'")[0]
    return Reply(
        (text(*(f"{number}.{word} " for word in range(WORDS))),), Usage(input=100, output=WORDS)
    )


def tasks() -> Counter[str]:
    """The tasks of the loop by what they run."""
    return Counter(getattr(task.get_coro(), "__qualname__", "") for task in asyncio.all_tasks())


async def slow_reader(stub: Any, words: asyncio.Event) -> list[str]:
    """Reads the first event, and the rest when it is told to."""
    call = stub.Chat(pb.ChatRequest(content="slow", model_id=ANTHROPIC_MODEL))
    first = await call.read()
    assert first.HasField("started")
    await words.wait()
    read = []
    while (event := await call.read()) is not grpc.aio.EOF:
        read.append(event.text_delta)
    return read


@pytest.fixture
def complaints() -> list[dict[str, Any]]:
    return []


async def test_many_answers_at_once_and_a_reader_that_is_slow(
    tmp_path: Path, complaints: list[dict[str, Any]]
) -> None:
    asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
    async with running_analytics(tmp_path, default_model=ANTHROPIC_MODEL) as analytics:
        analytics.fake.default = answer_for
        await analytics.client.ask("#warm")
        await until(lambda: not analytics.service.chat._running)
        before = tasks()
        analytics.fake.reply(text(*LONG))
        read_on = asyncio.Event()
        # A connection of its own: one that is not read holds up all that share it.
        options = [("grpc.use_local_subchannel_pool", 1)]
        async with grpc.aio.insecure_channel(analytics.address, options=options) as channel:
            stub = analytics_pb2_grpc.AnalyticsServiceStub(channel)
            slow = asyncio.create_task(slow_reader(stub, read_on))
            chat = analytics.service.chat
            await until(lambda: bool(chat._running))
            (turn,) = chat._running.values()
            await until(lambda: len(turn.events._events) >= MAX_WAITING)
            async with asyncio.timeout(2 * BOUND):
                answers = await asyncio.gather(
                    *(analytics.client.ask(f"which? #{number}") for number in range(CHATS))
                )
            for number, answer in enumerate(answers):
                assert answer.text == "".join(f"{number}.{word} " for word in range(WORDS))
            # All this time it has waited, with no more than fits into its stream.
            assert len(turn.events._events) <= MAX_WAITING
            assert not slow.done()
            read_on.set()
            async with asyncio.timeout(2 * BOUND):
                words = await slow
            assert "".join(words) == "".join(LONG)
        usage = await analytics.client.get_usage()
        assert usage.total.calls == CHATS + 2
        assert usage.total.unfinished_calls == 0
        await check_quiet(analytics, before, complaints)


async def test_readers_that_disappear(tmp_path: Path, complaints: list[dict[str, Any]]) -> None:
    asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
    async with running_analytics(tmp_path, default_model=ANTHROPIC_MODEL) as analytics:
        analytics.fake.default = answer_for
        await analytics.client.ask("#warm")
        before = tasks()
        never = asyncio.Event()
        calls = [analytics.fake.reply(text("Once"), gate(never)) for _ in range(8)]
        options = [("grpc.use_local_subchannel_pool", 1)]
        channel = grpc.aio.insecure_channel(analytics.address, options=options)
        stub: Any = analytics_pb2_grpc.AnalyticsServiceStub(channel)
        chats = [stub.Chat(pb.ChatRequest(content=f"#{number}")) for number in range(8)]
        for chat in chats:
            while not (await chat.read()).text_delta:
                pass
        await channel.close(grace=None)  # all of them at once
        for call in calls:
            await call.disconnected()
        await until(lambda: not analytics.service.chat._running)
        outcomes = Counter([each.outcome async for each in analytics.client.list_usage()])
        assert outcomes == {
            usage_pb2.CALL_OUTCOME_CANCELLED: 8,
            usage_pb2.CALL_OUTCOME_COMPLETED: 1,
        }
        async for session in analytics.client.list_sessions():
            answer = [m async for m in analytics.client.list_messages(session.name)][-1]
            assert answer.state in (
                session_pb2.MESSAGE_STATE_CANCELLED,
                session_pb2.MESSAGE_STATE_COMPLETE,
            )
        await check_quiet(analytics, before, complaints)


async def check_quiet(
    analytics: RunningAnalytics, before: Counter[str], complaints: list[dict[str, Any]]
) -> None:
    """Nothing goes on that did not before, and no task failed unheard."""
    chat = analytics.service.chat
    await until(lambda: not chat._running and not chat._beginning)
    await until(lambda: not tasks() - before)
    gc.collect()
    assert complaints == []
