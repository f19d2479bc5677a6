"""Which servers are alive: those that count on, whatever anybody does to a clock."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import pytest

from control_plane.domain.errors import Reason, Refusal
from control_plane.services.ports import Store
from control_plane.services.replicas import Replicas

ALLOWED = 15.0


class Counts:
    """What replicas share: each one's count. Stands for the store and for its transactions."""

    is_shared = True

    def __init__(self, counts: dict[str, int], replica: str) -> None:
        self.counts = counts
        self.replica = replica
        self.away = False

    async def write(self, work: Callable[[Any], Any]) -> Any:
        if self.away:
            raise Refusal(Reason.STORE_UNAVAILABLE, "away", retry_delay=0.1)
        return work(self)

    def beat(self, replica: str) -> dict[str, int]:
        self.counts[replica] = self.counts.get(replica, 0) + 1
        return dict(self.counts)

    def forget_replica(self, replica: str) -> None:
        self.counts.pop(replica, None)


class Two:
    """One server that looks, and another one that it looks at, with one steady time."""

    def __init__(self) -> None:
        self.now = 100.0
        counts: dict[str, int] = {}
        self.store = Counts(counts, "own")
        self.own = self._replica(self.store)
        self.other = self._replica(Counts(counts, "other"))

    def _replica(self, store: Counts) -> Replicas:
        return Replicas(cast(Store, store), lambda: self.now, ALLOWED)

    async def pass_seconds(self, seconds: int, *, other: bool) -> None:
        for _ in range(seconds):
            self.now += 1
            if other:
                await self.other.beat()
            await self.own.beat()


@pytest.fixture
async def two() -> Two:
    made = Two()
    await made.other.beat()
    await made.own.beat()
    return made


async def test_whoever_counts_on_is_alive(two: Two) -> None:
    await two.pass_seconds(40, other=True)
    assert two.own.alive() == {"own", "other"}
    assert two.own.heard("other") == two.now
    assert two.own.heard("own") is None, "nobody has to be told that by another"


async def test_whoever_stops_is_dead_once_the_time_is_over_and_is_buried_later(two: Two) -> None:
    await two.pass_seconds(15, other=False)
    assert two.own.alive() == {"own", "other"}
    await two.pass_seconds(1, other=False)
    assert two.own.alive() == {"own"}
    assert not two.own.may_be_alive("other")
    await two.own.bury()
    assert "other" in two.store.counts, "it may only be slow"
    await two.pass_seconds(16, other=False)
    await two.own.bury()
    assert two.store.counts.keys() == {"own"}


async def test_whoever_was_not_seen_yet_may_be_alive_and_whoever_left_is_not(two: Two) -> None:
    assert two.own.may_be_alive("new")
    assert not two.own.is_alive("new")
    assert two.own.heard("new") is None
    await two.other.leave()
    await two.own.beat()
    assert two.own.alive() == {"own"}
    assert two.own.is_alive("own")
    assert not two.own.may_be_alive("own")


async def test_while_the_store_was_away_nobody_could_be_seen_to_count(two: Two) -> None:
    two.store.away = True
    two.now += 3_600
    with pytest.raises(Refusal):
        await two.own.beat()
    two.store.away = False
    two.now += 1
    await two.own.beat()
    assert two.own.since == two.now
    assert two.own.alive() == {"own", "other"}, "it gets the time anew"
    await two.pass_seconds(16, other=False)
    assert two.own.alive() == {"own"}


def judges(replicas: Replicas) -> bool:
    return replicas.is_up_to_date


async def test_whoever_has_not_looked_judges_nobody(two: Two) -> None:
    assert judges(two.own)
    assert not judges(Replicas(cast(Store, two.store), lambda: two.now, ALLOWED))
    await two.pass_seconds(10, other=True)
    two.now += 15
    assert judges(two.own)
    assert two.own.alive() == {"own", "other"}
    two.now += 1
    assert not judges(two.own)
    assert two.own.alive() == {"own", "other"}, "it was alive at the last look"
    # A look that took so long says nothing of others: they may have waited as well.
    await two.own.beat()
    assert judges(two.own)
    assert two.own.alive() == {"own", "other"}
    assert two.own.since == two.now
    two.store.away = True
    with pytest.raises(Refusal):
        await two.own.beat()
    assert not judges(two.own)
