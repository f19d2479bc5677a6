"""What is left of an answer when its process ends in the middle, and who cleans up."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import signal
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from decimal import Decimal
from pathlib import Path

import pytest
import structlog

from analytics_service import upkeep
from analytics_service.client import (
    AsyncChat,
    AsyncClient,
    InvalidArgumentError,
    RetryPolicy,
    UnavailableError,
)
from midcourse.analytics.v1 import analytics_pb2, session_pb2, usage_pb2
from tests.support.analytics import (
    ANTHROPIC_MODEL,
    NOBODY,
    RunningAnalytics,
    catalogue_of,
    provider_keys,
    running_analytics,
)
from tests.support.fake_provider import (
    BOUND,
    FakeProvider,
    Usage,
    fake_provider,
    gate,
    stall,
    text,
    tool_call,
)
from tests.support.processes import Process, free_port

_log = structlog.get_logger(__name__)

LIMIT = Decimal(5)
STALLED = RetryPolicy(attempts=1000, initial=0.05, maximum=0.1)
"""For calls to a service that is just starting."""
ONCE = RetryPolicy(attempts=1)


@dataclass
class Place:
    """Where a service runs, again and again."""

    folder: Path
    fake: FakeProvider
    port: int
    grace: float = 0.5
    control_plane: str = NOBODY
    database: str | None = None
    before: str = ""

    def start(self) -> Process:
        options = "".join(
            f", {name}={value!r}"
            for name, value in {
                "listen": f"127.0.0.1:{self.port}",
                "database": self.database or str(self.folder / "analytics.db"),
                "catalogue": str(self.folder / "models.toml"),
                "control_plane": self.control_plane,
                "default_model": ANTHROPIC_MODEL,
                "log_format": "json",
                "grace": self.grace,
            }.items()
        )
        return Process(
            "analytics",
            [
                "-c",
                f"""\
from analytics_service.config import AnalyticsSettings
from analytics_service.server import serve
{self.before}
serve(AnalyticsSettings({options[2:]}))""",
            ],
            self.folder,
        )

    def client(self) -> AsyncClient:
        return AsyncClient(f"127.0.0.1:{self.port}", timeout=90.0, retry=STALLED)


@pytest.fixture
async def place(tmp_path: Path) -> AsyncIterator[Place]:
    async with fake_provider() as fake:
        # One provider, as each SDK takes a while to import.
        with provider_keys(OPENAI_API_KEY=None, XAI_API_KEY=None):
            (tmp_path / "models.toml").write_text(catalogue_of(fake))
            yield Place(tmp_path, fake, free_port())


@contextlib.contextmanager
def running(place: Place) -> Iterator[Process]:
    process = place.start()
    try:
        yield process
    finally:
        process.end()


@contextlib.asynccontextmanager
async def again(place: Place) -> AsyncIterator[AsyncClient]:
    """The next process on the same database; this one, as another would take long to start."""
    async with running_analytics(
        place.folder, fake=place.fake, default_model=ANTHROPIC_MODEL
    ) as running:
        yield running.client


async def failing(chat: AsyncChat, act: Callable[[analytics_pb2.ChatResponse], object]) -> str:
    """Reads a chat until it fails; returns its session."""
    with pytest.raises(UnavailableError):  # noqa: PT012 - it fails somewhere on the way
        async for event in chat:
            done = act(event)
            if inspect.isawaitable(done):
                await done
    assert chat.started is not None
    return chat.started.session


async def messages(client: AsyncClient, session: str) -> list[session_pb2.Message]:
    return [message async for message in client.list_messages(session)]


async def records(client: AsyncClient) -> list[usage_pb2.UsageRecord]:
    return [record async for record in client.list_usage()][::-1]


async def check_interrupted(client: AsyncClient, session: str) -> session_pb2.Message:
    """What a killed process leaves, after it was settled; returns the answer."""
    question, answer = (await messages(client, session))[-2:]
    assert question.parts[0].text == "what happened?"
    assert question.state == session_pb2.MESSAGE_STATE_COMPLETE
    assert answer.state == session_pb2.MESSAGE_STATE_INTERRUPTED
    assert answer.error.reason == "CHAT_INTERRUPTED"
    assert answer.HasField("end_time")
    record = (await records(client))[-1]
    assert record.outcome == usage_pb2.CALL_OUTCOME_INTERRUPTED
    assert not record.HasField("cost")
    assert record.unknown_reason
    assert Decimal(record.estimated_cost) > 0
    budget = await client.get_budget("day")
    assert Decimal(budget.reserved) == 0
    assert Decimal(budget.estimated) > Decimal(record.estimated_cost)  # what it may have cost
    read = await client.get_session(session)
    assert read.unknown_cost_calls == answer.unknown_cost_calls == 1
    return answer


async def test_killed_in_the_middle_of_a_stream(place: Place) -> None:
    place.fake.reply(
        text("Let me see. "), tool_call("no_such_tool"), usage=Usage(input=100, output=10)
    )
    place.fake.reply(text("It sp"), stall())
    async with place.client() as client:
        with running(place) as process:
            await client.set_budget(LIMIT, "day")
            chat = client.chat("what happened?", request_id="once")
            session = await failing(
                chat, lambda event: event.text_delta == "It sp" and process.kill()
            )
        async with again(place) as after:
            answer = await check_interrupted(after, session)
            # As saved with the end of the first call.
            (said,) = answer.parts
            assert said.text == "Let me see. "
            first, _ = await records(after)
            assert first.outcome == usage_pb2.CALL_OUTCOME_COMPLETED
            assert Decimal(answer.cost) == Decimal(first.cost) > 0
            # The same request is told how it ended, and makes no call.
            asked = len(place.fake.requests)
            with pytest.raises(UnavailableError) as told:
                await after.ask("what happened?", request_id="once")
            assert told.value.reason == "CHAT_INTERRUPTED"
            assert len(place.fake.requests) == asked
            place.fake.reply(text("It spiked."))
            assert (await after.ask("and?", session=session)).text == "It spiked."


async def test_told_to_stop_in_the_middle_of_a_stream(place: Place) -> None:
    place.fake.reply(text("It sp"), stall())
    place.grace = 1.5
    async with place.client() as client, AsyncClient(client.address, retry=ONCE) as other:
        with running(place) as process:
            await client.set_budget(LIMIT, "day")
            chat = client.chat("what happened?")

            async def stop() -> None:
                process._process.send_signal(signal.SIGTERM)
                await refused_while_draining(other)

            session = await failing(
                chat, lambda event: stop() if event.text_delta == "It sp" else None
            )
            code = await asyncio.to_thread(process.wait, place.grace + 3.0)
            assert code == 0, process.tail()
            assert "Traceback" not in process.tail()
            with pytest.raises(UnavailableError) as told:
                await chat.result()
            assert told.value.reason == "SHUTTING_DOWN"
        async with again(place) as after:
            _, answer = await messages(after, session)
            assert answer.state == session_pb2.MESSAGE_STATE_INTERRUPTED
            assert answer.error.reason == "SHUTTING_DOWN"
            assert answer.parts[0].text == "It sp"
            (record,) = await records(after)
            assert record.outcome == usage_pb2.CALL_OUTCOME_CANCELLED
            assert not record.HasField("cost")
            assert Decimal(record.estimated_cost) > 0
            budget = await after.get_budget("day")
            assert Decimal(budget.reserved) == 0
            assert Decimal(budget.spent) > Decimal(record.estimated_cost)  # what it may have cost


async def refused_while_draining(client: AsyncClient) -> None:
    """Asks until the signal has arrived."""
    reason = ""
    async with asyncio.timeout(BOUND):
        while not reason:
            try:
                # Refused either way, and nothing is recorded.
                await client.ask("me too?", model="unknown")
            except InvalidArgumentError as early:
                _log.info("not yet draining", error=early.message)
            except UnavailableError as refused:
                reason = refused.reason
    assert reason == "SHUTTING_DOWN"


async def test_killed_between_two_rounds(place: Place) -> None:
    place.fake.reply(
        text("Let me see. "), tool_call("list_jobs"), usage=Usage(input=100, output=10)
    )
    silent = socket.create_server(("127.0.0.1", 0))
    place.control_plane = f"127.0.0.1:{silent.getsockname()[1]}"
    async with place.client() as client:
        with running(place) as process:
            await client.set_budget(LIMIT, "day")
            chat = client.chat("what happened?")
            session = await failing(
                chat, lambda event: event.WhichOneof("event") == "tool_call" and process.kill()
            )
        async with again(place) as after:
            _, answer = await messages(after, session)
            assert answer.state == session_pb2.MESSAGE_STATE_INTERRUPTED
            assert answer.error.reason == "CHAT_INTERRUPTED"
            assert answer.parts[0].text == "Let me see. "
            (record,) = await records(after)
            assert record.outcome == usage_pb2.CALL_OUTCOME_COMPLETED
            assert Decimal(answer.cost) == Decimal(record.cost) > 0
            assert answer.unknown_cost_calls == 0
            budget = await after.get_budget("day")
            assert Decimal(budget.reserved) == 0
            assert Decimal(budget.spent) == Decimal(record.cost)
            place.fake.reply(text("It spiked."))
            answered = await after.ask("and?", session=session)
            assert answered.text == "It spiked."
    silent.close()


async def test_a_replica_settles_what_a_dead_one_left_and_not_what_a_live_one_does(
    place: Place, postgres_address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upkeep, "BEAT_SECONDS", 0.05)
    monkeypatch.setattr(upkeep, "RECOVERY_SILENCE", timedelta(seconds=1))
    place.database = postgres_address
    place.before = "from analytics_service import upkeep\nupkeep.BEAT_SECONDS = 0.05"
    place.fake.reply(text("It sp"), stall())
    with running(place) as process:
        async with (
            place.client() as client,
            running_analytics(
                place.folder,
                fake=place.fake,
                database=postgres_address,
                default_model=ANTHROPIC_MODEL,
            ) as other,
        ):
            await client.set_budget(LIMIT, "day")
            chat = client.chat("what happened?")

            async def kill() -> None:
                await asyncio.sleep(1.2)  # longer than a dead one may be silent
                _, answer = await messages(other.client, await the_session(other))
                assert answer.state == session_pb2.MESSAGE_STATE_RUNNING
                process.kill()

            session = await failing(
                chat, lambda event: kill() if event.text_delta == "It sp" else None
            )
            async with asyncio.timeout(BOUND):
                while await is_running(other, session):  # noqa: ASYNC110 - nobody tells
                    await asyncio.sleep(0.02)  # between two looks
            await check_interrupted(other.client, session)
            place.fake.reply(text("It spiked."))
            answered = await other.client.ask("and?", session=session)
            assert answered.text == "It spiked."


@pytest.fixture
async def pair(
    tmp_path: Path, postgres_address: str
) -> AsyncIterator[tuple[RunningAnalytics, RunningAnalytics]]:
    """Two replicas on one database, whose address may be written in two ways."""
    other_way = postgres_address.replace("postgresql://", "postgres://")
    async with (
        fake_provider() as fake,
        running_analytics(tmp_path, fake=fake, database=postgres_address) as first,
    ):
        fake.reply(text("Once"), gate(asyncio.Event()))
        async with first.client.chat("what happened?") as chat:
            while not (await anext(chat)).text_delta:
                pass
            async with running_analytics(tmp_path, fake=fake, database=other_way) as second:
                yield first, second


async def is_running(analytics: RunningAnalytics, session: str) -> bool:
    answer = (await messages(analytics.client, session))[-1]
    return answer.state == session_pb2.MESSAGE_STATE_RUNNING


async def the_session(analytics: RunningAnalytics) -> str:
    (session,) = [session async for session in analytics.client.list_sessions()]
    return session.name


async def test_a_replica_that_starts_leaves_the_answers_of_others_alone(
    pair: tuple[RunningAnalytics, RunningAnalytics],
) -> None:
    _, second = pair
    _, answer = await messages(second.client, await the_session(second))
    assert answer.state == session_pb2.MESSAGE_STATE_RUNNING


async def test_an_answer_is_cancelled_by_way_of_another_replica(
    pair: tuple[RunningAnalytics, RunningAnalytics],
) -> None:
    first, second = pair
    session = await the_session(second)
    answer = await second.client.cancel_chat(session)
    assert answer.state == session_pb2.MESSAGE_STATE_RUNNING  # the other one is going to stop it
    (turn,) = first.service.chat._running.values()
    async with asyncio.timeout(2.0):
        await turn.wait()
    _, answer = await messages(second.client, session)
    assert answer.state == session_pb2.MESSAGE_STATE_CANCELLED
    assert answer.parts[0].text == "Once"
    assert first.fake.requests[0].is_disconnected
