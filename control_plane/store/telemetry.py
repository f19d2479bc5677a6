"""Newest telemetry, and the samples of metrics."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from math import nan
from operator import itemgetter

from sqlalchemy import Connection, and_, bindparam, or_, select

from control_plane.domain.job import Job, MetricPoint, Progress, ReadValue
from control_plane.domain.series import Sample
from control_plane.services.records import Telemetry, TelemetryBatch
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
        telemetry.c.job_key, *(telemetry.c[name] for name in Telemetry._fields)
    ).where(telemetry.c.job_key.in_(keys))
)
_LATEST = Prepared(
    select(*(telemetry.c[name] for name in Telemetry._fields)).where(
        telemetry.c.job_key == bindparam("job_key")
    )
)
_LATEST_BY_ID = Prepared(
    select(*(telemetry.c[name] for name in Telemetry._fields))
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
_SERIES_FIELDS = ("job_key", "run", "name", "oldest_time")
_SAMPLE = ("series_key", "step", "time", "value")
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
        self._ahead.clear()
        # In one order, so that no two replicas wait for each other.
        given = sorted(batches, key=itemgetter(0))
        self._keep_series()
        keys = self._lookup({(batch.job_key, batch.run_number) for batch in given if batch.columns})
        existing = {job_key for job_key, _, _ in keys}
        asked = sorted({batch.job_key for batch in given} - existing)
        existing.update(key for (key,) in _EXISTING.rows(self._connection, asked))
        kept = [batch for batch in given if batch.job_key in existing]
        self._make_series(kept, keys)
        # By series and step: PostgreSQL takes no row that one statement replaces twice.
        newest: dict[tuple[int, int], tuple[int, int, int, float | None]] = {}
        for job_key, run, columns, _ in kept:
            for name, steps, values, times in columns:
                if not steps:
                    continue
                key = keys[job_key, run, name]
                for step, time, value in zip(steps, times, values, strict=True):
                    # NaN, which is not even itself, is NULL.
                    newest[key, step] = (key, step, time, value if value == value else None)
        rows = sorted(newest.values(), key=itemgetter(0, 1))
        write_rows(self._connection, samples, _SAMPLE, rows, replace=True)
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

    def _make_series(self, batches: Sequence[TelemetryBatch], keys: dict[SeriesId, int]) -> None:
        """Makes every series that the batches have samples of and that has no key; adds the key."""
        oldest: dict[SeriesId, int] = {}
        for job_key, run, columns, _ in batches:
            for name, _, _, times in columns:
                identity = (job_key, run, name)
                if identity not in keys and times:
                    oldest[identity] = min(*times, oldest.get(identity, times[0]))
        if oldest:
            new = [(*identity, time) for identity, time in oldest.items()]
            write_rows(self._connection, series, _SERIES_FIELDS, new, replace=False)
            keys |= self._lookup({(job_key, run) for job_key, run, _ in oldest})

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
        columns = ("job_key", *Telemetry._fields)
        write_rows(self._connection, telemetry, columns, rows, replace=True, unless_newer="epoch")
