"""Updates: of one job, and across jobs."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import fields, replace
from datetime import datetime
from functools import cache
from operator import attrgetter
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection, and_, bindparam, func, or_, select, tuple_

from control_plane.domain.job import seen_by_selectors
from control_plane.domain.update import OPEN_STATES, Update, UpdateState
from control_plane.services.records import Place, Scanned
from control_plane.store.bulk import Lookup, change_rows, insert_rows
from control_plane.store.jobs import JobQueries
from control_plane.store.schema import IS_OPEN, is_one_of, jobs, updates
from grpc_runtime.sql.prepared import Prepared

if TYPE_CHECKING:
    from sqlalchemy import BindParameter

    from control_plane.domain.job import Job
    from control_plane.domain.update import UpdateSpec

# An update knows its job by the id, which the job has. The deadline is read last.
_FIELDS = tuple(field.name for field in fields(Update) if field.name != "job_id")
_FIXED = frozenset(
    {"revision", "request_id", "spec", "author", "batch", "create_time", "trace_parent"}
)
_CHANGING = tuple(name for name in _FIELDS if name not in _FIXED)
_what_changes = attrgetter(*_CHANGING)

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
_OPEN_OF = Lookup(
    lambda keys: (
        select(updates.c.job_key, *(updates.c[name] for name in _FIELDS), updates.c.deadline)
        .join_from(updates, jobs)
        .where(jobs.c.id.in_(keys), is_one_of(updates.c.state, OPEN_STATES))
        .order_by(updates.c.job_key, updates.c.revision)
    )
)
_OF_ID = updates.c.job_key == (
    select(jobs.c.key).where(jobs.c.id == bindparam("id")).scalar_subquery()
)
_OPEN_COUNT_OF = Prepared(
    select(func.count()).select_from(updates).where(_OF_ID, is_one_of(updates.c.state, OPEN_STATES))
)
_BY_REQUEST_OF = Prepared(
    select(*(updates.c[name] for name in _FIELDS), updates.c.deadline).where(
        _OF_ID, updates.c.request_id == bindparam("request_id")
    )
)
_FIRST_OPEN = Prepared(
    select(func.min(updates.c.revision)).where(_OF_THE_JOB, is_one_of(updates.c.state, OPEN_STATES))
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
_NO_END = 2**63 - 1

_BY_HAND = ("job_key", "spec", "deadline", "request_id")
_AS_THEY_ARE = tuple(column.name for column in updates.c if column.name not in _BY_HAND)
_INSERTED = (*_BY_HAND, *_AS_THEY_ARE)
_the_others = attrgetter(*_AS_THEY_ARE)
_AT = Lookup(
    lambda keys: (
        select(
            updates.c.job_key, jobs.c.id, *(updates.c[name] for name in _FIELDS), updates.c.deadline
        )
        .join_from(updates, jobs)
        .where(or_(*(and_(updates.c.job_key == k, updates.c.revision == r) for k, r in keys)))
    ),
    width=2,
)
_OPEN_COUNTS = Lookup(
    lambda keys: (
        select(updates.c.job_key, func.count())
        .where(updates.c.job_key.in_(keys), is_one_of(updates.c.state, OPEN_STATES))
        .group_by(updates.c.job_key)
    )
)
_PLACE = tuple_(updates.c.create_time, updates.c.job_key, updates.c.revision)


@cache
def _scan(*, newest_first: bool, by_author: bool) -> Prepared:
    """What tells whether updates are wanted, of all jobs in the order of their times."""
    time = updates.c.create_time
    place = tuple_(bindparam("time", type_=time.type), bindparam("job"), bindparam("revision"))
    scan = select(
        *(time, updates.c.job_key, updates.c.revision, updates.c.state),
        *(jobs.c.id, jobs.c.method, jobs.c.state, jobs.c.labels),
    ).join_from(updates, jobs)
    if by_author:
        scan = scan.where(updates.c.author == bindparam("author"))
    if newest_first:
        scan = scan.where(place > _PLACE, time >= bindparam("start"))
        scan = scan.order_by(*(column.desc() for column in _PLACE.clauses))
    else:
        scan = scan.where(place < _PLACE, time < bindparam("end")).order_by(*_PLACE.clauses)
    return Prepared(scan.limit(bindparam("limit")))


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


class UpdateQueries(JobQueries):
    """The part of a transaction that is about updates; holds back as that about jobs does."""

    def __init__(self, connection: Connection, *, origin: str = "", writing: bool) -> None:
        """See `Queries`."""
        super().__init__(connection, origin=origin, writing=writing)
        self._held_updates: dict[tuple[int, int], Update] = {}
        self._known_updates: dict[tuple[int, int], Update] = {}
        self._known_open: dict[int, dict[int, Update]] = {}
        self._unread = False
        self._counted_open: dict[int, int] = {}
        self._found_by_request: dict[tuple[int, str], Update | None] = {}

    def update(self, job: Job, revision: int) -> Update | None:
        """The update, or None."""
        if (known := self._known_updates.get((job.key, revision))) is not None:
            return known
        # One that is not known is not held back.
        rows = _ONE.rows(self._direct, job_key=job.key, revision=revision)
        update = _update(job, rows[0]) if rows else None
        if update is not None and self._writing:
            self._know(job, update)
        return update

    def update_by_request(self, job: Job, request_id: str) -> Update | None:
        """The update that a request made, or None."""
        place = (job.key, request_id)
        if place in self._found_by_request:
            return self._found_by_request.pop(place)
        rows = _BY_REQUEST.rows(self._for_updates, job_key=job.key, request_id=request_id)
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
        if job.key in self._without_updates:
            return []
        if beyond is None:
            beyond = _NO_END if newest_first else -1
        page = _page(frozenset(states), newest_first=newest_first)
        rows = page.rows(self._for_updates, job_key=job.key, beyond=beyond, limit=limit)
        return [_update(job, row) for row in rows]

    def open_updates(self, job: Job) -> list[Update]:
        """Updates that are pending or delivered, oldest first."""
        if (known := self._known_open.get(job.key)) is not None:
            return [known[revision] for revision in sorted(known)]
        found: list[Update] = []
        if job.key not in self._without_updates:
            found = [_update(job, row) for row in _OPEN.rows(self._for_updates, job_key=job.key)]
        if self._writing:
            self._known_open[job.key] = {}
            for update in found:
                self._know(job, update)
        return found

    def read_ahead_open(self, ids: Iterable[str]) -> None:
        """Reads jobs with their open updates at once, for when each is asked for."""
        asked = list(ids)
        jobs_ = self._ask_ahead(asked)
        rows = _OPEN_OF.ask(self._for_updates, asked)
        found = {job.key: job for job in jobs_()}
        self._known_open.update((key, {}) for key in found)
        for job_key, *row in rows():
            self._know(found[job_key], _update(found[job_key], row))

    def _ask_of_request(self, job_id: str, request_id: str) -> Callable[[Job], None]:
        """Asks for what accepting a request looks at, for when it is asked for."""
        count = _OPEN_COUNT_OF.ask(self._direct, id=job_id)
        by_request = None
        if request_id:
            by_request = _BY_REQUEST_OF.ask(self._direct, id=job_id, request_id=request_id)

        def note(job: Job) -> None:
            [(self._counted_open[job.key],)] = count()
            if by_request is not None:
                rows = by_request()
                update = _update(job, rows[0]) if rows else None
                self._found_by_request[job.key, request_id] = update

        return note

    def first_open(self, job: Job) -> int | None:
        """Revision of the oldest update that is pending or delivered; None: there is none."""
        if (known := self._known_open.get(job.key)) is not None:
            return min(known, default=None)
        [(revision,)] = _FIRST_OPEN.rows(self._for_updates, job_key=job.key)
        return None if revision is None else int(revision)

    def applied_above(self, job: Job, floor: int) -> list[int]:
        """Revisions above `floor` in state APPLIED, ascending."""
        if job.key in self._without_updates:
            return []
        rows = _APPLIED.rows(self._for_updates, job_key=job.key, floor=floor)
        return [revision for (revision,) in rows]

    def overdue(self, now: datetime, limit: int) -> list[tuple[str, int]]:
        """(job id, revision) of open updates whose deadline has passed."""
        rows = _EXPIRED.rows(self._connection, now=now, limit=limit)
        return [(job_id, revision) for job_id, revision in rows]

    def insert_updates(self, made: Iterable[tuple[Job, Update]]) -> None:
        """Stores new updates, each of its job. Revisions and request ids must not be in use.

        Raises:
            sqlalchemy.exc.IntegrityError: If a revision or request id is in use.
        """
        bare: dict[int, UpdateSpec] = {}
        made = list(made)
        rows = [_row(job, update, bare) for job, update in made]
        insert_rows(self._direct, updates, _INSERTED, rows)
        for job, update in made:
            self._know(job, update)

    def save_update(self, job: Job, update: Update) -> None:
        """Stores an update that was read before.

        Raises:
            LookupError: If there is no such update; at the end of the transaction at the latest.
        """
        place = (job.key, update.revision)
        self._unread = self._unread or place not in self._known_updates
        self._held_updates[place] = update
        self._know(job, update)

    def _know(self, job: Job, update: Update) -> None:
        """Notes an update as it stands, for when it is asked for."""
        self._without_updates.discard(job.key)
        self._counted_open.pop(job.key, None)
        self._known_updates[job.key, update.revision] = update
        if (known := self._known_open.get(job.key)) is not None:
            known.pop(update.revision, None)
            if update.is_open:
                known[update.revision] = update

    @property
    def _for_updates(self) -> Connection:
        """The connection for what asks for updates alone: held jobs wait on."""
        self._write_held_updates()
        return self._direct

    def _write_held(self) -> None:
        self._write_held_updates()
        super()._write_held()

    def _write_held_updates(self) -> None:
        if not self._held_updates:
            return
        held, self._held_updates = self._held_updates, {}
        rows = [(*place, *_what_changes(update)) for place, update in held.items()]
        columns = ("job_key", "revision", *_CHANGING)
        found = change_rows(self._direct, updates, columns, rows, keys=2)
        unread, self._unread = self._unread, False
        # What was read in this transaction is there: only for others the answer is waited for.
        if unread and found() < len(rows):
            there = self.updates_at(list(held))
            gone = next((place, each) for place, each in held.items() if place not in there)
            raise LookupError(f"job {gone[1].job_id!r} has no update with revision {gone[0][1]}")

    def updates_at(self, places: Collection[tuple[int, int]]) -> dict[tuple[int, int], Update]:
        """Those of the updates that exist, by (job key, revision)."""
        found = {}
        for job_key, job_id, *row in _AT.rows(self._connection, list(places)):
            update = _update_of(job_id, row)
            found[job_key, update.revision] = update
        return found

    def read_ahead_updates(self, places: Collection[tuple[int, int]]) -> None:
        """Reads updates, by (job key, revision), at once, for when they are asked for."""
        self._known_updates.update(self.updates_at(places))

    def count_open_of(self, of: Iterable[Job]) -> dict[int, int]:
        """How many updates are pending or delivered, by job key; without those of none."""
        keys = [job.key for job in of]
        if self._counted_open.keys() >= set(keys):
            return {key: self._counted_open[key] for key in keys if self._counted_open[key]}
        rows = _OPEN_COUNTS.rows(self._connection, keys)
        return {job_key: int(count) for job_key, count in rows}

    def scan_updates(
        self,
        *,
        newest_first: bool,
        beyond: Place,
        until: datetime,
        author: str = "",
        limit: int,
    ) -> list[Scanned]:
        """Updates of all jobs in the order of their times, beyond a place in that order.

        Args:
            newest_first: The order.
            beyond: The place.
            until: Where to end: the oldest time, or, oldest first, the first that is too young.
            author: Only what this one asked for; empty: all.
            limit: How many to look at.
        """
        values: dict[str, Any] = {"author": author} if author else {}
        values["start" if newest_first else "end"] = until
        scan = _scan(newest_first=newest_first, by_author=bool(author))
        rows = scan.rows(
            self._connection,
            time=beyond.time,
            job=beyond.job_key,
            revision=beyond.revision,
            limit=limit,
            **values,
        )
        return [
            Scanned(Place(*row[:3]), row[3], row[4], seen_by_selectors(*row[4:])) for row in rows
        ]


def _row(job: Job, update: Update, bare: dict[int, UpdateSpec] | None = None) -> tuple[Any, ...]:
    """An update as a row; `bare`: specs without their deadlines, by the identity of the others."""
    spec, deadline = update.spec, update.spec.deadline
    if deadline is not None:
        known = None if bare is None else bare.get(id(spec))
        without = replace(spec, deadline=None) if known is None else known
        if bare is not None:
            bare[id(spec)] = without
        spec = without
    # NULL, as an empty text could be there only once.
    return (job.key, spec, deadline, update.request_id or None, *_the_others(update))


def _update(job: Job, row: Sequence[Any]) -> Update:
    return _update_of(job.id, row)


def _update_of(job_id: str, row: Sequence[Any]) -> Update:
    *values, deadline = row
    update = Update(job_id, *values)
    if deadline is None and update.request_id:
        return update
    return replace(
        update,
        spec=replace(update.spec, deadline=deadline),
        request_id=update.request_id or "",
    )
