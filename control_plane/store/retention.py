"""Deleting what is old, a bounded number of rows at a time."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import (
    ColumnElement,
    ScalarSelect,
    bindparam,
    delete,
    func,
    select,
    update,
)

from control_plane.store.queries import Queries
from control_plane.store.schema import events, samples, series
from grpc_runtime.sql.prepared import Prepared

_NEVER = 2**63 - 1


def _end(order: ColumnElement[int], time: ColumnElement[Any]) -> ColumnElement[int]:
    """Of the oldest rows: the first that is young enough to stay, else the place behind them.

    NULL if there is no row.
    """
    first_to_stay = func.min(order).filter(time >= bindparam("before"))
    return func.coalesce(first_to_stay, func.max(order) + 1)


_FIRST_EVENTS = (
    select(events.c.position, events.c.time)
    .order_by(events.c.position)
    .limit(bindparam("limit"))
    .subquery()
)
_NEWEST_EVENT: ScalarSelect[int] = select(func.max(events.c.position)).scalar_subquery()
_OLD_EVENTS = Prepared(select(_end(_FIRST_EVENTS.c.position, _FIRST_EVENTS.c.time), _NEWEST_EVENT))
_DELETE_EVENTS = Prepared(delete(events).where(events.c.position < bindparam("end")))

_OF_DELETED_JOBS = Prepared(
    select(series.c.key).where(series.c.job_key.is_(None)).limit(bindparam("limit"))
)
_WITH_OLD_SAMPLES = Prepared(
    select(series.c.key)
    .where(series.c.oldest_time < bindparam("before"))
    .order_by(series.c.oldest_time)
    .limit(bindparam("limit"))
)
_OF_SERIES = (
    select(samples.c.step, samples.c.time)
    .where(samples.c.series_key == bindparam("series_key"))
    .order_by(samples.c.step)
    .limit(bindparam("limit"))
)
_FIRST_SAMPLES = _OF_SERIES.subquery()
_OLD_SAMPLES = Prepared(select(_end(_FIRST_SAMPLES.c.step, _FIRST_SAMPLES.c.time)))
_DELETE_SAMPLES = Prepared(
    delete(samples).where(
        samples.c.series_key == bindparam("series_key"), samples.c.step < bindparam("end")
    )
)
_FIRST_SAMPLE = Prepared(_OF_SERIES)
_SAVE_OLDEST = Prepared(
    update(series)
    .where(series.c.key == bindparam("series_key"))
    .values(oldest_time=bindparam("time"))
)
_DELETE_SERIES = Prepared(delete(series).where(series.c.key == bindparam("series_key")))


class RetentionQueries(Queries):
    """The part of a transaction that deletes what is old.

    A series loses its samples from its first step on, up to the first one that is
    young enough; the events likewise. So neither a clock that was set back nor a
    sample that came late makes a hole, and hardly more rows are looked at than go.
    """

    def prune(
        self, *, samples_before: int | None, events_before: datetime | None, limit: int
    ) -> int:
        """Deletes at most `limit` old rows of each kind; returns how many were deleted.

        Samples of deleted jobs go first, and go whatever the times.

        Args:
            samples_before: Samples taken before this (microseconds since 1970) go.
            events_before: Events before this go, but for the newest event: it tells the
                newest position.
            limit: So that no transaction gets long.
        """
        self._keep_series(alone=True)
        orphans = _OF_DELETED_JOBS.rows(self._connection, limit=limit)
        count = self._prune_series(orphans, _NEVER, limit)
        if samples_before is not None and count < limit:
            old = _WITH_OLD_SAMPLES.rows(
                self._connection, before=samples_before, limit=limit - count
            )
            count += self._prune_series(old, samples_before, limit - count)
        if events_before is not None:
            count += self._prune_events(events_before, limit)
        return count

    def _prune_series(self, keys: Sequence[Any], before: int, limit: int) -> int:
        count = 0
        for (key,) in keys:
            if count >= limit:
                break
            count += self._prune_samples(key, before, limit - count)
        return count

    def _prune_samples(self, key: int, before: int, limit: int) -> int:
        count = 0
        [(end,)] = _OLD_SAMPLES.rows(self._connection, series_key=key, before=before, limit=limit)
        if end is not None:
            count = _DELETE_SAMPLES.run(self._connection, series_key=key, end=end)
        first = _FIRST_SAMPLE.rows(self._connection, series_key=key, limit=1)
        if first:
            _SAVE_OLDEST.run(self._connection, series_key=key, time=first[0][1])
        else:
            _DELETE_SERIES.run(self._connection, series_key=key)
        return count

    def _prune_events(self, before: datetime, limit: int) -> int:
        [(end, newest)] = _OLD_EVENTS.rows(self._connection, before=before, limit=limit)
        if end is None:
            return 0
        return _DELETE_EVENTS.run(self._connection, end=min(end, newest))
