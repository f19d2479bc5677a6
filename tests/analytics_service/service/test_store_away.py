"""A store that goes away in the middle of an answer: the caller is told, the end is kept."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from collections.abc import AsyncIterator, Callable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any, TypeAlias

import grpc
import pytest

from analytics_service import upkeep
from analytics_service.chat import finish
from analytics_service.chat.conversation import MessageState
from analytics_service.client import AsyncClient, MidcourseError, RetryPolicy, UnavailableError
from analytics_service.errors import Reason, Refusal
from grpc_runtime.sql import DatabaseOpenError
from midcourse.analytics.v1 import session_pb2, usage_pb2
from tests.support.analytics import ANTHROPIC_MODEL, RunningAnalytics, running_analytics, until
from tests.support.fake_provider import BOUND, Usage, gate, text
from tests.support.health import NOT_SERVING, SERVING, health_is
from tests.support.postgres import PostgresServer
from tests.support.processes import free_port

SERVICE = "midcourse.analytics.v1.AnalyticsService"
ONCE = RetryPolicy(attempts=1)
Away: TypeAlias = Callable[[], contextlib.AbstractContextManager[None]]


@contextlib.asynccontextmanager
async def on_sqlite(folder: Path) -> AsyncIterator[tuple[RunningAnalytics, Away]]:
    async with running_analytics(folder, default_model=ANTHROPIC_MODEL) as analytics:
        database: Any = analytics.service.chat._store
        await database._write(lambda to: to.exec_driver_sql("PRAGMA busy_timeout = 20"))

        @contextlib.contextmanager
        def away() -> Iterator[None]:
            with contextlib.closing(
                sqlite3.connect(folder / "analytics.db", isolation_level=None)
            ) as backup:
                backup.execute("BEGIN IMMEDIATE")
                yield
                backup.execute("ROLLBACK")

        yield analytics, away


@contextlib.asynccontextmanager
async def on_postgresql(
    folder: Path, server: PostgresServer
) -> AsyncIterator[tuple[RunningAnalytics, Away]]:
    with server.empty_database() as address:
        async with running_analytics(
            folder, default_model=ANTHROPIC_MODEL, database=address
        ) as analytics:

            @contextlib.contextmanager
            def away() -> Iterator[None]:
                server.stop()
                yield
                server.start()

            yield analytics, away


@pytest.fixture(params=["sqlite", "postgresql"])
async def place(
    tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[tuple[RunningAnalytics, Away]]:
    monkeypatch.setattr(finish, "RETRY_SECONDS", 0.02)
    made = (
        on_sqlite(tmp_path)
        if request.param == "sqlite"
        else on_postgresql(tmp_path, request.getfixturevalue("postgres_server"))
    )
    async with made as entered:
        await entered[0].client.set_budget(5, "day")
        yield entered


async def test_an_answer_that_can_not_be_recorded_is_an_error_and_is_recorded_later(
    place: tuple[RunningAnalytics, Away],
) -> None:
    analytics, away = place
    go_on = asyncio.Event()
    analytics.fake.reply(text("It "), gate(go_on), text("spiked."), usage=Usage(100, 10))
    backlog = analytics.service.chat._around.backlog
    async with AsyncClient(analytics.address, retry=ONCE) as client:
        chat = client.chat("what happened?")
        async with asyncio.timeout(2 * BOUND):
            while (await anext(chat)).text_delta != "It ":
                pass
            with away():
                go_on.set()
                with pytest.raises(UnavailableError) as failed:
                    await chat.result()
                assert failed.value.reason == "STORE_UNAVAILABLE"
                assert chat.text == "It spiked."
                assert len(backlog) == 2  # the end of the call, and of the answer
            await until(lambda: not len(backlog))
    assert chat.started is not None
    _, answer = [m async for m in analytics.client.list_messages(chat.started.session)]
    # What the caller was told: it failed. What there was of it is kept.
    assert answer.state == session_pb2.MESSAGE_STATE_FAILED
    assert answer.error.reason == "STORE_UNAVAILABLE"
    assert answer.parts[0].text == "It spiked."
    (record,) = [record async for record in analytics.client.list_usage()]
    assert record.outcome == usage_pb2.CALL_OUTCOME_COMPLETED
    assert Decimal(record.cost) == Decimal(answer.cost) > 0
    budget = await analytics.client.get_budget("day")
    assert Decimal(budget.reserved) == 0
    assert Decimal(budget.spent) == Decimal(record.cost)
    analytics.fake.reply(text("yes"))
    assert (await analytics.client.ask("and?", session=chat.started.session)).text == "yes"


async def test_while_the_store_is_away_questions_are_refused(
    place: tuple[RunningAnalytics, Away],
) -> None:
    analytics, away = place
    async with AsyncClient(analytics.address, retry=ONCE) as client:
        with away(), pytest.raises(UnavailableError) as refused:
            await client.ask("what happened?")
        assert refused.value.reason == "STORE_UNAVAILABLE"
        assert refused.value.retry_delay
    assert analytics.fake.requests == []
    await until(lambda: not len(analytics.service.chat._around.backlog))
    analytics.fake.reply(text("yes"))
    assert (await analytics.client.ask("what happened?")).text == "yes"
    assert Decimal((await analytics.client.get_budget("day")).reserved) == 0


async def test_a_turn_that_may_be_on_record_is_ended(
    analytics: RunningAnalytics, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A connection that is lost during the commit leaves it open what became of it."""
    monkeypatch.setattr(finish, "RETRY_SECONDS", 0.02)
    store: Any = analytics.service.chat._store
    plain = store.begin_turn

    async def lost(*args: Any) -> Any:
        await plain(*args)
        raise Refusal(Reason.STORE_UNAVAILABLE, "lost during the commit")

    await analytics.client.set_budget(5, "day")
    store.begin_turn = lost
    async with AsyncClient(analytics.address, retry=ONCE) as client:
        with pytest.raises(UnavailableError):
            await client.ask("what happened?")
    del store.begin_turn
    await until(lambda: not len(analytics.service.chat._around.backlog))
    (session,) = [session async for session in analytics.client.list_sessions()]
    _, answer = [m async for m in analytics.client.list_messages(session.name)]
    assert answer.state == session_pb2.MESSAGE_STATE_FAILED
    assert answer.error.reason == "STORE_UNAVAILABLE"
    (record,) = [record async for record in analytics.client.list_usage()]
    assert (record.outcome, record.cost) == (usage_pb2.CALL_OUTCOME_FAILED, "0")
    assert Decimal((await analytics.client.get_budget("day")).reserved) == 0
    assert analytics.fake.requests == []


@pytest.mark.parametrize(
    ("is_away", "reason"),
    [
        (lambda keeps_it: False, "CHAT_FAILED"),
        (lambda keeps_it: keeps_it, "CHAT_FAILED"),
        (lambda keeps_it: True, "STORE_UNAVAILABLE"),
    ],
    ids=["never", "for-what-can-be-kept", "for-all"],
)
async def test_an_answer_that_can_not_be_kept_ends_all_the_same(
    analytics: RunningAnalytics,
    monkeypatch: pytest.MonkeyPatch,
    is_away: Callable[[bool], bool],
    reason: str,
) -> None:
    client, store = analytics.client, analytics.service.chat._store
    end_call, end_turn = store.end_call, store.end_turn
    is_back = asyncio.Event()

    def look(keeps_it: bool) -> None:
        if is_away(keeps_it) and not is_back.is_set():
            raise Refusal(Reason.STORE_UNAVAILABLE, "away")
        if not keeps_it:
            raise ValueError("no database keeps that")

    async def no_call(call: Any, answer: Any = None) -> None:
        look(answer is None)
        await end_call(call)

    async def no_turn(answer: Any) -> Any:
        look(not answer.parts)
        return await end_turn(answer)

    await client.set_budget(5, "day")
    monkeypatch.setattr(store, "end_call", no_call)
    monkeypatch.setattr(store, "end_turn", no_turn)
    analytics.fake.reply(text("It spiked."))
    chat = client.chat("what happened?")
    with pytest.raises(MidcourseError) as failed:
        await chat.result()
    assert failed.value.reason == reason
    assert chat.started is not None
    is_back.set()
    backlog = analytics.service.chat._around.backlog
    await backlog.flush()
    assert not len(backlog)
    _, answer = [m async for m in client.list_messages(chat.started.session)]
    assert answer.state == session_pb2.MESSAGE_STATE_FAILED
    assert answer.error.reason == reason
    assert Decimal((await client.get_budget("day")).reserved) == 0
    monkeypatch.undo()
    analytics.fake.reply(text("yes"))
    assert (await client.ask("and?", session=chat.started.session)).text == "yes"


async def test_what_can_not_be_written_late_either_does_not_hold_up_the_rest() -> None:
    backlog = finish.Backlog()
    written: list[str] = []

    async def never() -> None:
        raise ValueError("no database keeps that")

    async def good() -> None:
        written.append("good")

    backlog.add("bad", never)
    backlog.add("good", good)
    await backlog.flush()
    assert (written, len(backlog)) == (["good"], 0)


async def test_a_store_that_is_closed_is_an_error_too(analytics: RunningAnalytics) -> None:
    go_on = asyncio.Event()
    analytics.fake.reply(text("It "), gate(go_on), text("spiked."))
    async with AsyncClient(analytics.address, retry=ONCE) as client:
        chat = client.chat("what happened?", model=ANTHROPIC_MODEL)
        async with asyncio.timeout(BOUND):
            while (await anext(chat)).text_delta != "It ":
                pass
            await analytics.service.chat._store.close()
            go_on.set()
            with pytest.raises(UnavailableError) as failed:
                await chat.result()
    assert failed.value.reason == "SHUTTING_DOWN"


async def test_a_turn_that_takes_too_long_is_stopped_and_one_that_is_cancelled_is_not_late(
    tmp_path: Path,
) -> None:
    async with running_analytics(
        tmp_path, default_model=ANTHROPIC_MODEL, turn_timeout=0.3
    ) as analytics:
        late = analytics.fake.reply(text("It "), gate(asyncio.Event()))
        with pytest.raises(UnavailableError) as failed:
            await analytics.client.ask("what happened?")
        assert failed.value.reason == "PROVIDER_TIMEOUT"
        assert "0.3 s" in failed.value.message
        await late.disconnected()
        (record,) = [record async for record in analytics.client.list_usage()]
        assert not record.HasField("cost")
        assert Decimal(record.estimated_cost) > 0
        # At the same moment, whichever comes first: the caller's wish is what is recorded.
        analytics.fake.reply(text("It "), gate(asyncio.Event()))
        async with analytics.client.chat("what happened?") as chat:
            async for event in chat:
                if event.text_delta:
                    (turn,) = analytics.service.chat._running.values()
                    assert turn._task is not None
                    turn.stop(MessageState.CANCELLED)
                    turn._task.cancel()  # as the limit of time does
        assert chat.message is not None
        assert chat.message.state == session_pb2.MESSAGE_STATE_CANCELLED


async def test_it_waits_for_its_database_and_tells_that_it_has_lost_it(
    tmp_path: Path, postgres_server: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upkeep, "BEAT_SECONDS", 0.1)
    port = free_port()
    with postgres_server.empty_database() as address:
        postgres_server.stop()

        async def serve() -> None:
            async with running_analytics(
                tmp_path, database=address, health_listen=f"127.0.0.1:{port}"
            ) as analytics:
                await health_is(probe, SERVICE, SERVING)
                postgres_server.stop()
                # Without a call: chores look now and then.
                await health_is(probe, SERVICE, NOT_SERVING)
                await health_is(probe, "", SERVING)
                postgres_server.start()
                await health_is(probe, SERVICE, SERVING)
                analytics.fake.reply(text("yes"))
                assert (await analytics.client.ask("what happened?")).text == "yes"

        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as probe:
            serving = asyncio.create_task(serve())
            await health_is(probe, "", NOT_SERVING)
            await health_is(probe, SERVICE, NOT_SERVING)
            assert not serving.done()
            postgres_server.start()
            await serving


async def test_it_gives_up_after_a_while(tmp_path: Path) -> None:
    nobody = free_port()
    with pytest.raises(DatabaseOpenError, match=r"waited for 0\.1 s"):
        async with running_analytics(
            tmp_path, database=f"postgresql://a:b@127.0.0.1:{nobody}/c", database_patience=0.1
        ):
            raise AssertionError("it serves")
