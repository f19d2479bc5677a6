"""Stores that stand before another one: what they tell, to whom, and that they hide nothing."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from control_plane.domain.errors import Reason, Refusal
from control_plane.domain.update import Update, UpdateState
from control_plane.services.jobs import new_job
from control_plane.services.passing import ObservedStore, PassingStore
from control_plane.services.ports import Transaction
from control_plane.services.readiness import WatchedStore
from control_plane.services.records import Event
from tests.support.domain_values import NOW, set_rate, settled
from tests.support.use_cases import FailingStore, Talk, UseCases, use_cases


class Follower:
    """A store that tells of what other servers write."""

    replica = "r-1"
    is_shared = True

    def __init__(self) -> None:
        self.closed = False

    async def follow(self, heard: Callable[[Sequence[Event] | None], None]) -> None:
        heard(None)

    async def close(self) -> None:
        self.closed = True


async def test_everything_is_passed_on() -> None:
    inner: Any = Follower()
    outer = PassingStore(PassingStore(inner))
    assert (outer.replica, outer.is_shared) == ("r-1", True)
    heard: list[object] = []
    await outer.follow(heard.append)
    assert heard == [None]
    await outer.close()
    assert inner.closed


class Retrying(FailingStore):
    """A store that does everything twice, as after a collision."""

    async def write(self, work: Callable[[Transaction], Any]) -> Any:
        def collide(tx: Transaction) -> None:
            work(tx)
            raise RuntimeError("collided")

        with contextlib.suppress(RuntimeError):
            await super().write(collide)
        return await super().write(work)


@pytest.fixture
async def told(tmp_path: Path) -> AsyncIterator[tuple[UseCases, list[Update]]]:
    """The use cases over a store that tells, and what it has told."""
    seen: list[Update] = []
    async with use_cases(tmp_path / "c.db") as plane:
        retrying = Retrying(plane.store.inner)
        plane.store.inner = ObservedStore(retrying, [seen.append])
        yield plane, seen


async def test_updates_are_told_once_each_when_they_are_on_disk(
    told: tuple[UseCases, list[Update]],
) -> None:
    plane, seen = told
    talk = Talk(await plane.session())
    await plane.submit(set_rate())
    assert [(each.revision, each.state) for each in seen] == [(1, UpdateState.PENDING)]
    await talk.session.outcome(talk.next(), settled(1))
    assert [each.state for each in seen][1:] == [UpdateState.APPLIED]


async def test_what_was_not_committed_is_not_told(told: tuple[UseCases, list[Update]]) -> None:
    plane, seen = told
    await plane.session()
    plane.store.away = True
    with pytest.raises(Refusal):
        await plane.submit(set_rate())
    assert seen == []


async def test_whoever_watches_a_store_sees_what_callers_see_and_not_its_own_attempts(
    tmp_path: Path,
) -> None:
    seen: list[Reason] = []

    @contextlib.contextmanager
    def noticing() -> Iterator[None]:
        try:
            yield
        except Refusal as refusal:
            seen.append(refusal.reason)
            raise

    async with use_cases(tmp_path / "c.db") as plane:
        watched = WatchedStore(plane.store, noticing)
        await watched.attempt()
        plane.store.away = True
        for call in (
            watched.write(lambda tx: tx.insert_job(new_job("j", {}, "", NOW))),
            watched.read(lambda tx: tx.job("j")),
            watched.attempt(),
        ):
            with pytest.raises(Refusal):
                await call
        assert seen == [Reason.STORE_UNAVAILABLE] * 2
        plane.store.away = False
        await watched.attempt()
        assert await watched.read(lambda tx: tx.job("j")) is None
