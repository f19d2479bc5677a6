"""A job's updates."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import fields, replace
from datetime import datetime
from functools import cache
from typing import TYPE_CHECKING, Any

from sqlalchemy import bindparam, func, insert, select, update

from control_plane.domain.update import OPEN_STATES, Update, UpdateState
from control_plane.store.queries import Queries
from control_plane.store.schema import IS_OPEN, is_one_of, jobs, updates
from grpc_runtime.sql.prepared import Prepared

if TYPE_CHECKING:
    from sqlalchemy import BindParameter

    from control_plane.domain.job import Job

# An update knows its job by the id, which the job has. The deadline is read last.
_FIELDS = tuple(field.name for field in fields(Update) if field.name != "job_id")
_FIXED = frozenset({"revision", "request_id", "spec", "author", "batch", "create_time"})
_CHANGING = tuple(name for name in _FIELDS if name not in _FIXED)

_OTHERS = updates.alias()
_OF_THE_JOB = updates.c.job_key == bindparam("job_key")
_OF_JOB = select(*(updates.c[name] for name in _FIELDS), updates.c.deadline).where(_OF_THE_JOB)
_ONE = Prepared(_OF_JOB.where(updates.c.revision == bindparam("revision")))
_BY_REQUEST = Prepared(_OF_JOB.where(updates.c.request_id == bindparam("request_id")))
# Which ones first: asked at once, SQLite would go through the whole history in its order.
_OPEN_REVISIONS = select(_OTHERS.c.revision).where(
    _OTHERS.c.job_key == bindparam("job_key"), is_one_of(_OTHERS.c.state, OPEN_STATES)
)
_OPEN = Prepared(
    _OF_JOB.where(updates.c.revision.in_(_OPEN_REVISIONS)).order_by(updates.c.revision)
)
_COUNT_OPEN = Prepared(
    select(func.count())
    .select_from(updates)
    .where(_OF_THE_JOB, is_one_of(updates.c.state, OPEN_STATES))
)
_APPLIED = Prepared(
    select(updates.c.revision)
    .where(
        _OF_THE_JOB,
        is_one_of(updates.c.state, [UpdateState.APPLIED]),
        updates.c.revision > bindparam("floor"),
    )
    .order_by(updates.c.revision)
)
_EXPIRED = Prepared(
    select(jobs.c.id, updates.c.revision)
    .join_from(updates, jobs)
    .where(IS_OPEN, updates.c.deadline <= bindparam("now"))
    .order_by(updates.c.deadline)
    .limit(bindparam("limit"))
)
_INSERT = Prepared(insert(updates).values({column: bindparam(column.name) for column in updates.c}))
_SAVE = Prepared(
    update(updates)
    .where(updates.c.job_key == bindparam("of_job"), updates.c.revision == bindparam("number"))
    .values({name: bindparam(name) for name in _CHANGING})
)
_NO_END = 2**63 - 1


@cache
def _page(states: frozenset[UpdateState], *, newest_first: bool) -> Prepared:
    """Updates of the states, if any are given, in the order of their revisions."""
    revision = updates.c.revision
    beyond: BindParameter[int] = bindparam("beyond")
    page = _OF_JOB.where(revision < beyond if newest_first else revision > beyond)
    if states:
        page = page.where(is_one_of(updates.c.state, states))
    order = revision.desc() if newest_first else revision
    return Prepared(page.order_by(order).limit(bindparam("limit")))


class UpdateQueries(Queries):
    """The part of a transaction that is about updates."""

    def update(self, job: Job, revision: int) -> Update | None:
        """The update, or None."""
        rows = _ONE.rows(self._connection, job_key=job.key, revision=revision)
        return _update(job, rows[0]) if rows else None

    def update_by_request(self, job: Job, request_id: str) -> Update | None:
        """The update that a request made, or None."""
        rows = _BY_REQUEST.rows(self._connection, job_key=job.key, request_id=request_id)
        return _update(job, rows[0]) if rows else None

    def updates(
        self,
        job: Job,
        *,
        newest_first: bool = True,
        beyond: int | None = None,
        limit: int,
        states: Iterable[UpdateState] = (),
    ) -> list[Update]:
        """Updates in the order of their revisions, beyond a revision in that order."""
        if beyond is None:
            beyond = _NO_END if newest_first else -1
        page = _page(frozenset(states), newest_first=newest_first)
        rows = page.rows(self._connection, job_key=job.key, beyond=beyond, limit=limit)
        return [_update(job, row) for row in rows]

    def open_updates(self, job: Job) -> list[Update]:
        """Updates that are pending or delivered, oldest first."""
        return [_update(job, row) for row in _OPEN.rows(self._connection, job_key=job.key)]

    def count_open(self, job: Job) -> int:
        """How many updates are pending or delivered."""
        [(count,)] = _COUNT_OPEN.rows(self._connection, job_key=job.key)
        return int(count)

    def applied_above(self, job: Job, floor: int) -> list[int]:
        """Revisions above `floor` in state APPLIED, ascending."""
        rows = _APPLIED.rows(self._connection, job_key=job.key, floor=floor)
        return [revision for (revision,) in rows]

    def overdue(self, now: datetime, limit: int) -> list[tuple[str, int]]:
        """(job id, revision) of open updates whose deadline has passed."""
        rows = _EXPIRED.rows(self._connection, now=now, limit=limit)
        return [(job_id, revision) for job_id, revision in rows]

    def insert_update(self, job: Job, update: Update) -> None:
        """Stores a new update. Its revision and its request id must not be in use.

        Raises:
            sqlalchemy.exc.IntegrityError: If one of them is.
        """
        values = {name: getattr(update, name) for name in _FIELDS}
        deadline = update.spec.deadline
        if deadline is not None:
            values["spec"] = replace(update.spec, deadline=None)
        values["request_id"] = update.request_id or None
        _INSERT.run(self._connection, job_key=job.key, deadline=deadline, **values)

    def save_update(self, job: Job, update: Update) -> None:
        """Stores an update that was read before.

        Raises:
            LookupError: If there is no such update.
        """
        values = {name: getattr(update, name) for name in _CHANGING}
        if not _SAVE.run(self._connection, of_job=job.key, number=update.revision, **values):
            raise LookupError(f"job {job.id!r} has no update with revision {update.revision}")


def _update(job: Job, row: Sequence[Any]) -> Update:
    *values, deadline = row
    update = Update(job.id, *values)
    if deadline is None and update.request_id:
        return update
    return replace(
        update,
        spec=replace(update.spec, deadline=deadline),
        # NULL in the database, where an empty text could be there only once.
        request_id=update.request_id or "",
    )
