"""The course of a job's metrics: how much is made at a time."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import TypeVar

import pytest

from control_plane.domain.series import Sample, Statistics, describe
from control_plane.services import metrics
from control_plane.services.metrics import MetricsQuery
from control_plane.services.passing import PassingStore
from control_plane.services.ports import Transaction
from tests.support.use_cases import Talk, UseCases, eventually, heartbeat

T = TypeVar("T")
QUERY = MetricsQuery("j")


class NotedStore(PassingStore):
    """Counts the reads that were begun for callers, and those of them that were answered."""

    begun = answered = 0

    async def read(self, work: Callable[[Transaction], T]) -> T:
        self.begun += 1
        result = await super().read(work)
        self.answered += 1
        return result


async def test_whoever_leaves_makes_no_room_for_more_series_than_there_may_be_at_once(
    plane: UseCases, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A read that has begun goes on without its caller."""
    go_on = threading.Event()
    making: list[None] = []

    def held(samples: list[Sample]) -> Statistics:
        making.append(None)
        assert go_on.wait(60)
        return describe(samples)

    monkeypatch.setattr(metrics, "describe", held)
    talk = Talk(await plane.session())
    await talk.session.heartbeat(talk.next(), heartbeat(2, loss=[2.0, 1.0]))
    await plane.telemetry.flush()
    plane.metrics._store = store = NotedStore(plane.store)
    try:
        hasty = [asyncio.create_task(plane.metrics.query(QUERY)) for _ in range(2)]
        await eventually(lambda: len(making) == 2, "two are made")
        for caller in hasty:
            caller.cancel()
        await asyncio.gather(*hasty, return_exceptions=True)
        waiting, withdrawn = (asyncio.create_task(plane.metrics.query(QUERY)) for _ in range(2))
        # Each has been told which metrics there are, and then would have begun at once.
        await eventually(lambda: store.answered == 4, "two more would like one")
        assert store.begun == 2 * 2 + 2
        withdrawn.cancel()
    finally:
        go_on.set()
    assert [series.name for series in await waiting] == ["loss"]
    await asyncio.gather(withdrawn, return_exceptions=True)
    assert len(making) == 3
    assert withdrawn.cancelled()


async def test_what_becomes_of_a_series_that_nobody_waits_for_is_nobody_s_trouble(
    plane: UseCases, monkeypatch: pytest.MonkeyPatch
) -> None:
    go_on, making, left = threading.Event(), threading.Event(), []

    def fail(_samples: list[Sample]) -> Statistics:
        making.set()
        assert go_on.wait(60)
        raise RuntimeError("the disk is gone")

    monkeypatch.setattr(metrics, "describe", fail)
    asyncio.get_running_loop().set_exception_handler(lambda _, context: left.append(context))
    talk = Talk(await plane.session())
    await talk.session.heartbeat(talk.next(), heartbeat(2, loss=[2.0, 1.0]))
    hasty = asyncio.create_task(plane.metrics.query(QUERY))
    try:
        await eventually(making.is_set, "it is made")
        hasty.cancel()
        await asyncio.gather(hasty, return_exceptions=True)
    finally:
        go_on.set()
    with pytest.raises(RuntimeError, match="the disk is gone"):
        await plane.metrics.query(QUERY)
    await eventually(lambda: not plane.metrics._making, "both are over")
    assert left == []
