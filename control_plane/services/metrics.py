"""Use case: the course of a job's metrics."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from control_plane.domain.errors import invalid
from control_plane.domain.series import Sample, Statistics, describe, lineage, reduce
from control_plane.services.views import need_job

if TYPE_CHECKING:
    from control_plane.services.ports import Store, Transaction
    from control_plane.services.telemetry import TelemetryHub

MOST_SAMPLES = 500_000
"""Samples of a metric that one series tells of: so many are held in memory."""
_AT_ONCE = 2
"""Series that are made at a time, also for callers who have left meanwhile: the store's threads
are for others as well."""


@dataclass(frozen=True, slots=True)
class MetricsQuery:
    """What to return; times are microseconds since 1970, None: no limit."""

    job_id: str
    names: tuple[str, ...] = ()
    first_step: int | None = None
    last_step: int | None = None
    start_time: int | None = None
    end_time: int | None = None
    last: int | None = None
    max_points: int = 1_000


@dataclass(frozen=True, slots=True)
class MetricSeries:
    """The course of a metric, reduced to `max_points`, and numbers about all of it."""

    name: str
    samples: Sequence[Sample]
    statistics: Statistics
    reduced: bool


class MetricsService:
    """Answers queries about metrics."""

    def __init__(self, store: Store, telemetry: TelemetryHub) -> None:
        """Takes its parts."""
        self._store = store
        self._telemetry = telemetry
        self._free = asyncio.Semaphore(_AT_ONCE)
        self._making: set[asyncio.Task[MetricSeries | None]] = set()

    async def query(self, query: MetricsQuery) -> list[MetricSeries]:
        """One series for each metric that has samples in range.

        Raises:
            Refusal: JOB_NOT_FOUND, or INVALID_ARGUMENT where there are too many samples.
        """
        await self._telemetry.flush()
        known = await self._store.read(lambda tx: tx.metric_names(need_job(tx, query.job_id)))
        names = [n for n in query.names if n in known] if query.names else known
        found = [await self._make(query, name) for name in dict.fromkeys(names)]
        return [series for series in found if series is not None]

    async def _make(self, query: MetricsQuery, name: str) -> MetricSeries | None:
        """The course of one metric, if it has samples in range."""
        await self._free.acquire()
        # All of it there: what is long takes no time from what the event loop has to do.
        reading = self._store.read(partial(_series, query=query, name=name))
        # A task of its own: a read goes on when its caller leaves, and counts for as long.
        making = asyncio.create_task(reading)
        self._making.add(making)
        making.add_done_callback(self._made)
        await asyncio.wait([making])
        return making.result()

    def _made(self, making: asyncio.Task[MetricSeries | None]) -> None:
        self._making.discard(making)
        self._free.release()
        if not making.cancelled():
            making.exception()  # is for the caller; if that one has left, for nobody


def _series(tx: Transaction, query: MetricsQuery, name: str) -> MetricSeries | None:
    """The course of one metric, if it has samples in range.

    Raises:
        Refusal: JOB_NOT_FOUND, or INVALID_ARGUMENT where there are too many.
    """
    job = need_job(tx, query.job_id)
    samples = tx.samples(
        job,
        name,
        spans=list(_within(lineage(tx.runs(job)), query.first_step, query.last_step)),
        start_time=query.start_time,
        end_time=query.end_time,
        last=min(query.last or MOST_SAMPLES + 1, MOST_SAMPLES + 1),
    )
    if len(samples) > MOST_SAMPLES:
        raise invalid(
            "steps",
            f"{name} has more than {MOST_SAMPLES:,} samples in range, at most so many are told at "
            "once; ask for fewer steps, for a shorter time, or for the last so many",
        )
    if not samples:
        return None
    points = reduce(samples, query.max_points)
    return MetricSeries(name, points, describe(samples), len(points) < len(samples))


def _within(
    spans: Iterable[tuple[int, int, int | None]], first: int | None, last: int | None
) -> Iterable[tuple[int, int, int | None]]:
    """The parts of spans that lie within a range of steps."""
    for run, start, end in spans:
        low = start if first is None else max(start, first)
        high = end if last is None else last if end is None else min(end, last)
        if high is None or low <= high:
            yield run, low, high
