"""Use case: the course of a job's metrics."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from control_plane.domain.series import Sample, Statistics, describe, lineage, reduce
from control_plane.services.views import need_job

if TYPE_CHECKING:
    from control_plane.services.ports import Store, Transaction
    from control_plane.services.telemetry import TelemetryHub


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

    async def query(self, query: MetricsQuery) -> list[MetricSeries]:
        """One series for each metric that has samples in range.

        Raises:
            Refusal: JOB_NOT_FOUND.
        """
        await self._telemetry.flush()

        def work(tx: Transaction) -> list[tuple[str, list[Sample]]]:
            job = need_job(tx, query.job_id)
            spans = list(_within(lineage(tx.runs(job)), query.first_step, query.last_step))
            known = tx.metric_names(job)
            names = [n for n in query.names if n in known] if query.names else known
            return [
                (
                    name,
                    tx.samples(
                        job,
                        name,
                        spans=spans,
                        start_time=query.start_time,
                        end_time=query.end_time,
                        last=query.last,
                    ),
                )
                for name in dict.fromkeys(names)
            ]

        series = []
        for name, samples in await self._store.read(work):
            if samples:
                points = reduce(samples, query.max_points)
                series.append(
                    MetricSeries(name, points, describe(samples), len(points) < len(samples))
                )
        return series


def _within(
    spans: Iterable[tuple[int, int, int | None]], first: int | None, last: int | None
) -> Iterable[tuple[int, int, int | None]]:
    """The parts of spans that lie within a range of steps."""
    for run, start, end in spans:
        low = start if first is None else max(start, first)
        high = end if last is None else last if end is None else min(end, last)
        if high is None or low <= high:
            yield run, low, high
