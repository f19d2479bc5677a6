"""Newest telemetry, and the samples of metrics."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import fields
from math import isnan, nan
from operator import itemgetter

from sqlalchemy import Connection, and_, bindparam, or_, select

from control_plane.domain.job import Job, MetricPoint, Progress, ReadValue
from control_plane.domain.series import Sample
from control_plane.services.ports import Telemetry, TelemetryBatch
from control_plane.store.bulk import Lookup, write_rows
from control_plane.store.codec import codec
from control_plane.store.queries import Queries
from control_plane.store.schema import jobs, samples, series, telemetry
from grpc_runtime.sql.columns import microseconds
from grpc_runtime.sql.prepared import Prepared

SeriesId = tuple[int, int, str]
"""(job key, run number, metric)."""

_progress = codec(Progress)
_metrics = codec(tuple[MetricPoint, ...])
_readings = codec(tuple[ReadValue, ...])
_NO_READINGS = _readings.encode(())

# Not locked: where one is deleted meanwhile all of it is done again, without that one.
_EXISTING = Lookup(lambda keys: select(jobs.c.key).where(jobs.c.key.in_(keys)))
_SERIES = Lookup(
    lambda runs: select(series.c.job_key, series.c.run, series.c.name, series.c.key).where(
        or_(*(and_(series.c.job_key == job, series.c.run == run) for job, run in runs))
    ),
    width=2,
)
_NAMES = Prepared(
    select(series.c.name)
    .where(series.c.job_key == bindparam("job_key"))
    .distinct()
    .order_by(series.c.name)
)
_LATEST_OF = Lookup(
    lambda keys: select(
        telemetry.c.job_key, *(telemetry.c[field.name] for field in fields(Telemetry))
    ).where(telemetry.c.job_key.in_(keys))
)
_LATEST = Prepared(
    select(*(telemetry.c[field.name] for field in fields(Telemetry))).where(
        telemetry.c.job_key == bindparam("job_key")
    )
)
_LATEST_BY_ID = Prepared(
    select(*(telemetry.c[field.name] for field in fields(Telemetry)))
    .join_from(telemetry, jobs)
    .where(jobs.c.id == bindparam("id"))
)
# The last first, so that no more is read than is asked for.
_SAMPLES = Prepared(
    select(samples.c.step, samples.c.value, samples.c.time)
    .where(
        samples.c.series_key == bindparam("series_key"),
        samples.c.step.between(bindparam("first"), bindparam("last")),
        samples.c.time >= bindparam("start"),
        samples.c.time < bindparam("end"),
    )
    .order_by(samples.c.step.desc())
    .limit(bindparam("limit"))
)
_NO_BEGINNING, _NO_END = -(2**63), 2**63 - 1


class TelemetryQueries(Queries):
    """The part of a transaction that is about telemetry."""

    def __init__(self, connection: Connection, *, origin: str = "", writing: bool) -> None:
        """See `Queries`."""
        super().__init__(connection, origin=origin, writing=writing)
        self._ahead: dict[int, Telemetry | None] = {}

    def add_telemetry(self, batches: Iterable[TelemetryBatch]) -> None:
        """Stores samples and the newest telemetry. A sample again takes the older one's place.

        Batches of jobs that are gone are left out without a word, and so is the newest
        telemetry of a session where that of a later one is there.
        """
        # In one order, so that no two replicas wait for each other.
        self._ahead.clear()
        given = sorted(batches, key=lambda batch: batch.job_key)
        self._keep_series()
        asked = sorted({batch.job_key for batch in given})
        existing = {key for (key,) in _EXISTING.rows(self._connection, asked)}
        kept = [batch for batch in given if batch.job_key in existing]
        keys = self._series_keys(kept)
        # By series and step: PostgreSQL takes no row that one statement replaces twice.
        newest = {
            (keys[batch.job_key, batch.run_number, column.name], step): (time, value)
            for batch in kept
            for column in batch.columns
            for step, time, value in zip(
                column.steps,
                column.times,
                [None if isnan(value) else value for value in column.values],
                strict=True,
            )
        }
        columns = ("series_key", "step", "time", "value")
        rows = [(*key, *sample) for key, sample in sorted(newest.items(), key=itemgetter(0))]
        write_rows(self._connection, samples, columns, rows, replace=True)
        self._save_latest({batch.job_key: batch.latest for batch in kept})

    def telemetry(self, job: Job) -> Telemetry | None:
        """The newest telemetry of a job as stored, or None."""
        if job.key in self._ahead:
            return self._ahead[job.key]
        rows = _LATEST.rows(self._direct, job_key=job.key)
        return Telemetry(*rows[0]) if rows else None

    def _ask_telemetry(self, job_id: str) -> Callable[[Job], None]:
        """Asks for a job's newest telemetry, for when it is asked for."""
        rows = _LATEST_BY_ID.ask(self._direct, id=job_id)

        def note(job: Job) -> None:
            found = rows()
            self._ahead[job.key] = Telemetry(*found[0]) if found else None

        return note

    def read_ahead_telemetry(self, of: Iterable[Job]) -> None:
        """Reads the newest telemetry of many jobs at once, for when it is asked for."""
        keys = [job.key for job in of if job.key not in self._ahead]
        if not keys:
            return
        self._ahead.update(dict.fromkeys(keys))
        for job_key, *values in _LATEST_OF.rows(self._connection, keys):
            self._ahead[job_key] = Telemetry(*values)

    def metric_names(self, job: Job) -> list[str]:
        """Names of the metrics that the job has samples of, in order."""
        return [name for (name,) in _NAMES.rows(self._connection, job_key=job.key)]

    def samples(
        self,
        job: Job,
        name: str,
        *,
        spans: Sequence[tuple[int, int, int | None]],
        start_time: int | None = None,
        end_time: int | None = None,
        last: int | None = None,
    ) -> list[Sample]:
        """Samples of a metric in the order of their steps; see `Transaction.samples`."""
        keys = self._lookup({(job.key, run) for run, _, _ in spans})
        found: list[Sample] = []
        for run, first, end in reversed(spans):
            key = keys.get((job.key, run, name))
            if key is None:
                continue
            rows = _SAMPLES.rows(
                self._connection,
                series_key=key,
                first=first,
                last=_NO_END if end is None else end,
                start=_NO_BEGINNING if start_time is None else start_time,
                end=_NO_END if end_time is None else end_time,
                limit=_NO_END if last is None else max(0, last - len(found)),
            )
            found += [
                Sample(step, nan if value is None else value, time) for step, value, time in rows
            ]
        found.reverse()
        return found

    def _series_keys(self, batches: Sequence[TelemetryBatch]) -> dict[SeriesId, int]:
        """The key of every series that the batches have samples of; makes those that are new."""
        oldest: dict[SeriesId, int] = {}
        for batch in batches:
            for column in batch.columns:
                if len(column.times):
                    identity = (batch.job_key, batch.run_number, column.name)
                    first = min(column.times)
                    if (known := oldest.get(identity)) is None or first < known:
                        oldest[identity] = first
        keys = self._lookup({(job_key, run) for job_key, run, _ in oldest})
        new = [(*identity, time) for identity, time in oldest.items() if identity not in keys]
        if new:
            columns = ("job_key", "run", "name", "oldest_time")
            write_rows(self._connection, series, columns, new, replace=False)
            keys |= self._lookup({(job_key, run) for job_key, run, _, _ in new})
        return keys

    def _lookup(self, runs: Iterable[tuple[int, int]]) -> dict[SeriesId, int]:
        """The keys of all series of these runs, each with the job's key and its own number."""
        rows = _SERIES.rows(self._connection, sorted(runs))
        return {(job_key, run, name): key for job_key, run, name, key in rows}

    def _save_latest(self, latest: dict[int, Telemetry]) -> None:
        rows = [
            (
                job_key,
                None if newest.progress is None else _progress.encode(newest.progress),
                _metrics.encode(newest.metrics),
                newest.dropped_samples,
                _readings.encode(newest.readings) if newest.readings else _NO_READINGS,
                newest.epoch,
                None if newest.seen_time is None else microseconds(newest.seen_time),
            )
            for job_key, newest in latest.items()
        ]
        columns = ("job_key", *(field.name for field in fields(Telemetry)))
        write_rows(self._connection, telemetry, columns, rows, replace=True, unless_newer="epoch")
