"""Progress and metrics: the newest in memory, all of it to the store in batches."""

from __future__ import annotations

import asyncio
import itertools
import math
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import structlog

from control_plane.domain.acceptance import Standing
from control_plane.domain.errors import Reason, Refusal
from control_plane.domain.job import Job, MetricPoint, Progress, ReadValue
from control_plane.services.records import Telemetry, TelemetryBatch
from control_plane.services.steady_time import SteadyTime
from control_plane.services.views import JobView

if TYPE_CHECKING:
    from structlog.typing import FilteringBoundLogger

    from control_plane.domain.parameter import Value
    from control_plane.domain.session import Heartbeat, MetricColumn
    from control_plane.domain.update import Transition
    from control_plane.services.ports import Clock, Steady, Store, Transaction

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

_FLUSHED_AT_ONCE = 500
"""Jobs in one transaction of a flush: whoever has an update to store waits for no more of them."""

_MOST_DROPPED = 2**63 - 1
"""Dropped samples of a job: the store has no room for a larger number, nor anybody a use."""

_log: FilteringBoundLogger = structlog.get_logger(__name__)


@dataclass(slots=True)
class Live:
    """The newest telemetry of a job.

    Attributes:
        version: Grows with every change, over all jobs, so that watchers see what is new.
        last_seen: When anything was last heard of the job, in steady seconds; None: not since
            the server began.
        readings: Newest values of parameters, by (parameter, group).
        epoch: The session that tells all this.
        dropped_by_agent: Of the dropped samples, those that the present agent has counted.
    """

    progress: Progress | None = None
    metrics: dict[str, MetricPoint] = field(default_factory=dict)
    dropped_samples: int = 0
    version: int = 0
    last_seen: float | None = None
    readings: dict[tuple[str, str], ReadValue] = field(default_factory=dict)
    epoch: int = 0
    dropped_by_agent: int = 0

    def stored(self, steady_zero: datetime) -> Telemetry:
        """The same, as the store keeps it.

        Args:
            steady_zero: The time at which steady seconds were 0.
        """
        seen = self.last_seen
        return Telemetry(
            self.progress,
            tuple(self.metrics.values()),
            self.dropped_samples,
            tuple(self.readings.values()),
            self.epoch,
            None if seen is None else steady_zero + timedelta(0, seen),
        )


@dataclass(slots=True)
class _Pending:
    """What waits for the next flush, for one run of one job."""

    columns: list[MetricColumn] = field(default_factory=list)
    stored: list[Callable[[], None]] = field(default_factory=list)


class TelemetryHub:
    """Takes heartbeats in, keeps the newest values, and flushes everything to the store."""

    def __init__(
        self,
        store: Store,
        clock: Clock,
        *,
        flush_interval: float,
        max_pending_samples: int,
        steady: Steady = time.monotonic,
    ) -> None:
        """Begins empty.

        Args:
            store: Where samples go.
            clock: The time.
            flush_interval: Seconds between flushes.
            max_pending_samples: With more samples waiting than this, `room` waits.
            steady: What silence is measured by.
        """
        self._store = store
        self.steady = steady
        self._times = SteadyTime(clock, steady)
        self._flush_interval = flush_interval
        self._max_pending = max_pending_samples
        self._live: dict[int, Live] = {}
        self._pending: dict[tuple[int, int], _Pending] = {}
        self._pending_samples = 0
        self._work = asyncio.Event()
        self._room = asyncio.Event()
        self._room.set()
        self._flushing = asyncio.Lock()
        self.version = 0
        self.taken = 0
        """Samples taken in."""
        self.dropped = 0
        """Samples that agents had to drop, as they say."""

    @property
    def waiting(self) -> int:
        """Samples that wait for the store."""
        return self._pending_samples

    def current(self, job: Job) -> Live | None:
        """The newest telemetry of a job, where its session is, or was last, with this server.

        Else another server knows better: what is in the store is newer.
        """
        live = self._live.get(job.key)
        epoch = job.session.epoch if job.session is not None else 0
        return live if live is not None and live.epoch == epoch else None

    def seen(self, job_key: int) -> None:
        """Notes that something was heard of a job just now."""
        self.of(job_key).last_seen = self.steady()

    def forget(self, job_key: int) -> None:
        """Drops what is known of a deleted job."""
        self._live.pop(job_key, None)

    async def forget_silent(self, seconds: float, kept: Callable[[], Collection[int]]) -> None:
        """Drops what is known of jobs that were silent for long, and that the store has.

        Args:
            seconds: How long.
            kept: Returns the keys of jobs that are known all the same, once it is time.
        """
        async with self._flushing:
            waiting = {job_key for job_key, _ in self._pending}
            before = self.steady() - seconds
            for job_key in self._live.keys() - waiting - set(kept()):
                seen = self._live[job_key].last_seen
                if seen is None or seen < before:
                    del self._live[job_key]

    @property
    def has_room(self) -> bool:
        """Whether there is room for more samples."""
        return self._room.is_set()

    async def room(self) -> None:
        """Waits until there is room for more samples. Whoever reads a stream waits here."""
        await self._room.wait()

    def resume(
        self, job_key: int, epoch: int, stored: Telemetry | None, *, is_new_agent: bool
    ) -> None:
        """Begins a session; takes over what is stored, unless this server had the last one too.

        Args:
            job_key: The job.
            epoch: The session.
            stored: What is in the store; None: nothing.
            is_new_agent: Whether it is another agent than before, which counts from 0.
        """
        live = self.of(job_key)
        if is_new_agent:
            live.dropped_by_agent = 0
        had_the_last = live.epoch == epoch - 1 and live.version > 0
        live.epoch = epoch
        if stored is None or had_the_last:
            return
        live.progress = stored.progress
        live.metrics = {point.name: point for point in stored.metrics}
        live.dropped_samples = stored.dropped_samples
        if not is_new_agent:
            live.dropped_by_agent = stored.dropped_samples  # or fewer: nobody knows
        live.readings = {(each.parameter, each.group): each for each in stored.readings}

    def begin_run(self, job_key: int, start_step: int) -> None:
        """Notes that a new training process goes on from a step, and what came after is void."""
        live = self.of(job_key)
        live.progress = Progress(start_step)
        live.metrics = {
            name: point for name, point in live.metrics.items() if point.step <= start_step
        }
        live.readings.clear()
        self._changed(live)
        self._store_soon(job_key)

    def progress(self, job_key: int, progress: Progress) -> None:
        """Takes in progress that came without samples."""
        live = self.of(job_key)
        live.progress = progress
        self._changed(live)
        self._store_soon(job_key)

    def applied(self, job_key: int, transitions: Iterable[Transition]) -> None:
        """Notes that values were confirmed, by which what was read before is outdated."""
        live = self.of(job_key)
        outdated = {(t.parameter, t.group) for t in transitions} & live.readings.keys()
        for key in outdated:
            del live.readings[key]
        if outdated:
            self._store_soon(job_key)

    def take(
        self,
        job_key: int,
        run_number: int,
        live: Live,
        heartbeat: Heartbeat,
        stored: Callable[[], None],
    ) -> None:
        """Takes a heartbeat in.

        Args:
            job_key: The job.
            run_number: The job's run that the samples belong to.
            live: Its newest telemetry, from `of`.
            heartbeat: What came.
            stored: Called once all of it is on disk.
        """
        if heartbeat.progress is not None:
            live.progress = heartbeat.progress
        if heartbeat.dropped_samples > live.dropped_by_agent:
            more = heartbeat.dropped_samples - live.dropped_by_agent
            more = min(more, _MOST_DROPPED - live.dropped_samples)
            self.dropped += more
            live.dropped_samples += more
            live.dropped_by_agent = heartbeat.dropped_samples
        for reading in heartbeat.readings:
            if reading.value is not None:
                live.readings[reading.parameter, reading.group] = ReadValue(
                    reading.parameter,
                    reading.group,
                    reading.value,
                    live.progress.step if live.progress is not None else 0,
                )
        for name, steps, values, times in heartbeat.metrics:
            if not steps:
                continue
            live.metrics[name] = MetricPoint(name, steps[-1], values[-1], times[-1])
            self._pending_samples += len(steps)
            self.taken += len(steps)
        self._changed(live)
        pending = self._pending.get((job_key, run_number))
        if pending is None:
            pending = self._pending[job_key, run_number] = _Pending()
        pending.columns += heartbeat.metrics
        pending.stored.append(stored)
        self._work.set()
        if self._pending_samples >= self._max_pending:
            self._room.clear()

    def view(self, tx: Transaction, job: Job, *, connected: bool) -> JobView:
        """A job with its telemetry."""
        telemetry = self._telemetry(tx, job)
        if job.session is not None:
            seen = job.session.last_seen_time
            if telemetry.seen_time is not None:
                seen = max(seen, telemetry.seen_time)
            session = replace(job.session, connected=connected, last_seen_time=seen)
            job = replace(job, session=session)
        last = tx.update(job, job.revision) if job.revision else None
        return JobView(job, telemetry.progress, telemetry.metrics, telemetry.dropped_samples, last)

    def read_ahead(self, tx: Transaction, jobs: Iterable[Job]) -> None:
        """Has what is needed of many jobs read at once, where it is not in memory."""
        tx.read_ahead_telemetry([job for job in jobs if self.current(job) is None])

    def standings(self, tx: Transaction, jobs: Sequence[Job]) -> dict[int, Standing]:
        """What updates of jobs are judged by, by job key."""
        self.read_ahead(tx, jobs)
        counts = tx.count_open_of(jobs)
        standings = {}
        for job in jobs:
            telemetry = self._telemetry(tx, job)
            standings[job.key] = Standing(
                _in_force(job, telemetry), _steps_done(telemetry), counts.get(job.key, 0)
            )
        return standings

    def steps_done(self, tx: Transaction, job: Job) -> int | None:
        """Optimizer steps that a job has done; None: unknown."""
        return _steps_done(self._telemetry(tx, job))

    def in_force(self, tx: Transaction, job: Job) -> dict[tuple[str, str], Value]:
        """The newest known values of a job's parameters, by (parameter, group).

        A schedule moves a value on after it was confirmed; a metric of the parameter's
        name tells where it has come to.
        """
        return _in_force(job, self._telemetry(tx, job))

    def _telemetry(self, tx: Transaction, job: Job) -> Telemetry:
        """From memory, or where there is none, from the store."""
        live = self.current(job)
        if live is not None:
            return live.stored(self._times.zero())
        return tx.telemetry(job) or Telemetry(None, (), 0)

    async def run(self) -> None:
        """Flushes at intervals until cancelled."""
        failures = 0
        while True:
            await self._work.wait()
            await asyncio.sleep(self._flush_interval)
            try:
                await self.flush()
                failures = 0
            except Refusal as refusal:
                failures += 1
                if refusal.reason is not Reason.STORE_UNAVAILABLE:
                    raise
                # Samples stay with us and, unacknowledged, with the agents.
                _log.warning("samples wait for the store", error=refusal.message, tries=failures)
                await asyncio.sleep(min(5.0, 0.1 * 2 ** min(failures, 10)))

    async def flush(self) -> None:
        """Brings everything that waits to the store.

        Raises:
            Refusal: STORE_UNAVAILABLE; what waited still waits.
        """
        async with self._flushing:
            taken, self._pending = self._pending, {}
            self._work.clear()
            while taken:
                await self._flush_some(taken)

    async def _flush_some(self, taken: dict[tuple[int, int], _Pending]) -> None:
        """Brings some of what was taken to the store, and takes it out of `taken`."""
        some = dict(itertools.islice(taken.items(), _FLUSHED_AT_ONCE))
        steady_zero = self._times.zero()
        batches = [
            TelemetryBatch(key, run, pending.columns, live.stored(steady_zero))
            for (key, run), pending in some.items()
            if (live := self._live.get(key)) is not None
        ]
        try:
            await self._store.write(lambda tx: tx.add_telemetry(batches))
        except BaseException:
            self._put_back(taken)
            raise
        self._pending_samples -= sum(len(c.steps) for p in some.values() for c in p.columns)
        if self._pending_samples < self._max_pending:
            self._room.set()
        for key, pending in some.items():
            del taken[key]
            for stored in pending.stored:
                stored()

    def _store_soon(self, job_key: int) -> None:
        """Has the newest of a job stored though there are no samples with it."""
        self._pending.setdefault((job_key, 0), _Pending())
        self._work.set()

    def _put_back(self, taken: dict[tuple[int, int], _Pending]) -> None:
        for key, pending in taken.items():
            newer = self._pending.get(key)
            if newer is not None:
                pending.columns += newer.columns
                pending.stored += newer.stored
            self._pending[key] = pending
        self._work.set()

    def of(self, job_key: int) -> Live:
        """The newest telemetry of a job's session with this server; made where there is none."""
        live = self._live.get(job_key)
        if live is None:
            live = self._live[job_key] = Live()
        return live

    def _changed(self, live: Live) -> None:
        self.version += 1
        live.version = self.version


def _steps_done(telemetry: Telemetry) -> int | None:
    return telemetry.progress.step if telemetry.progress is not None else None


def _in_force(job: Job, telemetry: Telemetry) -> dict[tuple[str, str], Value]:
    """See `TelemetryHub.in_force`."""
    values = job.in_force()
    confirmed: dict[str, int] = {}
    for each in job.effective:
        confirmed[each.parameter] = max(each.step, confirmed.get(each.parameter, 0))
    for reading in telemetry.readings:
        # Another server may have stored what was confirmed, and not yet that it is newer.
        if reading.step >= confirmed.get(reading.parameter, 0):
            values[reading.parameter, reading.group] = reading.value
    metrics = {metric.name: metric for metric in telemetry.metrics}
    for spec in job.parameters:
        key = (spec.name, "")
        if spec.groups and key not in values and (spec.name, spec.groups[0]) in values:
            values[key] = values[spec.name, spec.groups[0]]  # which stands for the whole
        metric = metrics.get(spec.name)
        if metric is None or not math.isfinite(metric.value):
            continue
        if metric.step >= confirmed.get(spec.name, 0):
            values[key] = metric.value
    return values
