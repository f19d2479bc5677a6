"""When a replica takes another one for dead: not while the store was away, whatever clocks say."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import datetime, timedelta
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from analytics_service.chat.conversation import MessageState
from analytics_service.errors import Reason, Refusal
from analytics_service.ports import Store
from analytics_service.store import open_store
from analytics_service.upkeep import Retention, Upkeep
from tests.support.analytics import RunningAnalytics
from tests.support.analytics_store import NOW, call, turn
from tests.support.fake_provider import text

FOR_EVER = Retention(sessions=None, usage=None)


class Time:
    """Clocks that are set by the test."""

    def __init__(self) -> None:
        self.wall = NOW
        self.seconds = 1000.0

    def now(self) -> datetime:
        return self.wall

    def steady(self) -> float:
        return self.seconds

    def pass_by(self, seconds: float) -> None:
        self.wall += timedelta(seconds=seconds)
        self.seconds += seconds


@pytest.fixture
def time() -> Time:
    return Time()


@pytest.fixture
async def store(tmp_path: Path, time: Time) -> AsyncIterator[Store]:
    opened = await open_store(tmp_path / "analytics.db", clock=time.now)
    yield opened
    await opened.close()


def replica(store: Store, time: Time, name: str) -> Upkeep:
    return Upkeep(store, time.now, name, FOR_EVER, is_alone=False, steady=time.steady)


async def is_running(store: Store) -> bool:
    answer = await store.get_message("s", 2)
    assert answer is not None
    return answer.state is MessageState.RUNNING


async def begun(store: Store, time: Time) -> tuple[Upkeep, Upkeep]:
    """Two replicas, of which r1 has an answer in flight."""
    first, second = replica(store, time, "r1"), replica(store, time, "r2")
    await first.begin()
    await second.begin()
    await store.begin_turn(turn(replica="r1"), call(replica="r1"))
    return first, second


async def away(*_: object) -> None:
    raise Refusal(Reason.STORE_UNAVAILABLE, "away")


async def test_a_replica_that_is_silent_is_dead_after_a_while(store: Store, time: Time) -> None:
    _, second = await begun(store, time)
    for _ in range(6):
        assert await is_running(store)
        time.pass_by(5)
        await second.tick()
    assert not await is_running(store)
    assert list(await store.beats()) == ["r2"]


async def test_nobody_is_dead_because_the_store_was_away(
    store: Store, time: Time, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = await begun(store, time)
    with monkeypatch.context() as patch:
        patch.setattr(store, "beat", away)
        for _ in range(8):
            time.pass_by(5)
            with pytest.raises(Refusal):
                await second.tick()
    await second.tick()
    assert await is_running(store)
    await first.tick()
    time.pass_by(5)
    await second.tick()
    assert await is_running(store)


async def test_nobody_is_dead_because_this_process_was_held(store: Store, time: Time) -> None:
    _, second = await begun(store, time)
    time.pass_by(40)
    await second.tick()
    assert await is_running(store)


async def test_nobody_is_dead_because_a_clock_was_set(store: Store, time: Time) -> None:
    _, second = await begun(store, time)
    time.wall += timedelta(days=1)
    await second.tick()
    assert await is_running(store)


async def test_a_replica_that_starts_after_the_store_was_away_takes_nobody_for_dead(
    store: Store, time: Time
) -> None:
    await begun(store, time)
    time.pass_by(40)
    third = replica(store, time, "r3")
    await third.begin()
    assert await is_running(store)


async def test_who_was_forgotten_shows_life_before_it_begins_anything(
    store: Store, time: Time
) -> None:
    first, second = replica(store, time, "r1"), replica(store, time, "r2")
    await first.begin()
    await second.begin()
    for _ in range(6):
        time.pass_by(5)
        await second.tick()
    assert list(await store.beats()) == ["r2"]
    await first.be_known()
    await store.begin_turn(turn(replica="r1"), call(replica="r1"))
    await second.tick()
    assert await is_running(store)
    beats = await store.beats()
    time.pass_by(5)
    await first.be_known()
    assert await store.beats() == beats, "it is known"


async def test_life_is_shown_before_each_turn_and_call(
    analytics: RunningAnalytics, monkeypatch: pytest.MonkeyPatch
) -> None:
    service, seen = analytics.service, []
    seconds = count(10**9, 60)
    monkeypatch.setattr(service.upkeep, "_steady", lambda: next(seconds))
    store: Any = service.chat._store

    def noting(name: str) -> None:
        plain = getattr(store, name)

        async def noted(*args: Any) -> Any:
            seen.append(name)
            return await plain(*args)

        monkeypatch.setattr(store, name, noted)

    for name in ("beat", "begin_turn", "begin_call"):
        noting(name)
    analytics.fake.fail(429, headers={"retry-after": "0.01"}, kind="rate_limit_exceeded")
    analytics.fake.reply(text("yes"))
    await analytics.client.ask("what happened?")
    begun = [at for at, name in enumerate(seen) if name != "beat"]
    assert [seen[at] for at in begun] == ["begin_turn", "begin_call"]
    assert [seen[at - 1] for at in begun] == ["beat", "beat"]
