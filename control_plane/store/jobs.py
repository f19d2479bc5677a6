"""Jobs and their runs."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import astuple, fields, replace
from functools import cache
from operator import attrgetter
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection, bindparam, delete, insert, literal_column, select, union_all

from control_plane.domain.job import LIVE_STATES, Job, JobState, seen_by_selectors
from control_plane.domain.session import Run
from control_plane.services.records import Page
from control_plane.store.bulk import Lookup, change_rows, write_rows
from control_plane.store.queries import Queries
from control_plane.store.schema import is_one_of, jobs, runs
from grpc_runtime.sql.prepared import Prepared

if TYPE_CHECKING:
    from sqlalchemy import Select

_FIELDS = tuple(field.name for field in fields(Job))
_FIXED = frozenset({"key", "id", "uid", "create_time"})
_CHANGING = tuple(name for name in _FIELDS if name not in _FIXED)
_what_changes = attrgetter(*_CHANGING)
# Beside the job's own: found by it, told by the session.
_WRITTEN = (*(name for name in _FIELDS if name != "key"), "replica")
_RUN_FIELDS = tuple(field.name for field in fields(Run))

_JOB = select(*(jobs.c[name] for name in _FIELDS))
_BY_ID = _JOB.where(jobs.c.id == bindparam("id"))
_JOB_TO_READ = Prepared(_BY_ID)
# The revisions of a job are given under this lock. It lets others refer to the row, as new
# series of metrics do.
_JOB_TO_CHANGE = Prepared(_BY_ID.with_for_update(key_share=True))
_NAMED = Lookup(lambda ids: _JOB.where(jobs.c.id.in_(ids)))
_NAMED_TO_CHANGE = Lookup(
    lambda ids: _JOB.where(jobs.c.id.in_(ids)).order_by(jobs.c.id).with_for_update(key_share=True)
)
_INSERT = Prepared(
    insert(jobs).values({name: bindparam(name) for name in _WRITTEN}).returning(jobs.c.key)
)
_DELETE = Prepared(delete(jobs).where(jobs.c.key == bindparam("job_key")))
_RUNS = Prepared(
    select(*(runs.c[name] for name in _RUN_FIELDS))
    .where(runs.c.job_key == bindparam("job_key"))
    .order_by(runs.c.number)
)


_OF_NO_REPLICA = jobs.c.replica.not_in(bindparam("replicas", expanding=True))
_UNHEARD = union_all(
    _JOB.where(is_one_of(jobs.c.state, LIVE_STATES), _OF_NO_REPLICA),
    # Of jobs that have ended there may be many, and few of them have a stream.
    _JOB.where(
        is_one_of(jobs.c.state, frozenset(JobState) - LIVE_STATES),
        jobs.c.replica > literal_column("''"),
        _OF_NO_REPLICA,
    ),
)


@cache
def _page(states: frozenset[JobState], *, to_change: bool) -> Prepared:
    """Jobs of the states, if any are given, in the order of their ids."""
    page = _in_order(_JOB, states)
    # Locked in the order of the ids, as everybody does who locks several.
    return Prepared(page.with_for_update(key_share=True) if to_change else page)


@cache
def _selectable(states: frozenset[JobState]) -> Prepared:
    """What selectors see of such a page."""
    return Prepared(
        _in_order(select(jobs.c.id, jobs.c.method, jobs.c.state, jobs.c.labels), states)
    )


def _in_order(page: Select[Any], states: frozenset[JobState]) -> Select[Any]:
    page = page.where(jobs.c.id > bindparam("after"))
    if states:
        page = page.where(is_one_of(jobs.c.state, states))
    return page.order_by(jobs.c.id).limit(bindparam("limit"))


class JobQueries(Queries):
    """The part of a transaction that is about jobs.

    What becomes of jobs is held back until something is asked of the database, or the end: then
    the last of it is written, all jobs together and no more of them than has changed.
    """

    def __init__(self, connection: Connection, *, origin: str = "", writing: bool) -> None:
        """See `Queries`."""
        super().__init__(connection, origin=origin, writing=writing)
        self._stored: dict[int, Job] = {}
        self._held_jobs: dict[int, Job] = {}
        self._known: dict[str, Job | None] = {}
        # Jobs made here that have none of these yet, which need not be asked for.
        self._without_runs: set[int] = set()
        self._without_updates: set[int] = set()

    def job(self, job_id: str) -> Job | None:
        """The job, or None."""
        if job_id in self._known:
            return self._known[job_id]
        statement = _JOB_TO_CHANGE if self._writing else _JOB_TO_READ
        # One that is not known is not held back.
        for row in statement.rows(self._direct, id=job_id):
            return self._found([Job(*row)])[0]
        return None

    def jobs(
        self, *, after: str = "", limit: int, states: Iterable[JobState] = ()
    ) -> Page[Job, str]:
        """Jobs in the order of their ids, after an id; of the given states, if any are given."""
        page = _page(frozenset(states), to_change=self._writing)
        rows = page.rows(self._connection, after=after, limit=limit)
        found = self._found([Job(*row) for row in rows])
        return Page(found, found[-1].id if len(found) == limit else None)

    def unheard_jobs(self, replicas: Collection[str]) -> list[Job]:
        """Jobs that seem to have a stream, or to be alive, and none of the replicas has it open."""
        rows = self._connection.execute(_UNHEARD, {"replicas": list(replicas)})
        return [Job(*row) for row in rows]

    def jobs_named(self, ids: Iterable[str]) -> list[Job]:
        """Those of the jobs that exist, in the order of their ids."""
        return self._ask_named(ids)()

    def _ask_named(self, ids: Iterable[str]) -> Callable[[], list[Job]]:
        lookup = _NAMED_TO_CHANGE if self._writing else _NAMED
        # Locked in the order of the ids, as everybody does who locks several.
        rows = lookup.ask(self._connection, sorted(set(ids)))

        def named() -> list[Job]:
            found = {job.id: job for job in (Job(*row) for row in rows())}
            return self._found([found[job_id] for job_id in sorted(found)])

        return named

    def _ask_ahead(self, ids: list[str]) -> Callable[[], list[Job]]:
        named = self._ask_named(ids)

        def noted() -> list[Job]:
            found = named()
            self._known.update(dict.fromkeys(ids))
            self._known.update((job.id, job) for job in found)
            return found

        return noted

    def selectable_jobs(
        self, *, after: str, limit: int, states: Iterable[JobState] = ()
    ) -> Page[tuple[str, dict[str, str]], str]:
        """(id, what selectors see) of jobs in the order of their ids, as from `jobs`."""
        rows = _selectable(frozenset(states)).rows(self._connection, after=after, limit=limit)
        found = [(row[0], seen_by_selectors(*row)) for row in rows]
        return Page(found, found[-1][0] if len(found) == limit else None)

    def check_scope(self, job: Job) -> None:
        """Does nothing: this transaction is everybody's."""

    def insert_job(self, job: Job) -> Job:
        """Stores a new job and returns it with its key. The id must not be in use.

        Raises:
            sqlalchemy.exc.IntegrityError: If it is.
        """
        values = {name: getattr(job, name) for name in _FIELDS if name != "key"}
        values["replica"] = _replica(job)
        [(key,)] = _INSERT.rows(self._direct, **values)
        self._without_runs.add(key)
        self._without_updates.add(key)
        return self._found([replace(job, key=key)])[0]

    def save_job(self, job: Job) -> None:
        """Stores a job that was read before.

        Raises:
            RuntimeError: If it was not read in this transaction: what others have
                changed since would be lost.
        """
        self._check_read(job)
        self._held_jobs[job.key] = job
        self._known[job.id] = job

    def save_accepting(self, jobs_: Sequence[Job]) -> None:
        """Stores of jobs that were read before what accepting updates changes in them.

        Raises:
            RuntimeError: If one was not read in this transaction.
        """
        for job in jobs_:
            JobQueries.save_job(self, job)

    def _found(self, found: list[Job]) -> list[Job]:
        """Notes jobs as they stand in the database, for when they are asked for or stored."""
        if self._writing:
            self._stored.update((job.key, job) for job in found)
            self._known.update((job.id, job) for job in found)
        return found

    def _write_held(self) -> None:
        held, self._held_jobs = self._held_jobs, {}
        rows: dict[tuple[str, ...], list[list[Any]]] = {}
        for key, job in held.items():
            stored = self._stored[key]
            changed: list[str] = []
            values: list[Any] = [key]
            pairs = zip(_CHANGING, _what_changes(job), _what_changes(stored), strict=True)
            for name, new, old in pairs:
                if new is not old:
                    changed.append(name)
                    values.append(new)
            if "session" in changed:
                changed.append("replica")
                values.append(_replica(job))
            if changed:
                rows.setdefault(("key", *changed), []).append(values)
            self._stored[key] = job
        for columns, of_these in rows.items():
            change_rows(self._direct, jobs, columns, of_these)
        super()._write_held()

    def _check_read(self, job: Job) -> None:
        if job.key not in self._stored:
            raise RuntimeError(
                f"job {job.id!r} was not read in this transaction; read, change and save a job in "
                "the same one"
            )

    def delete_job(self, job: Job) -> None:
        """Deletes a job and everything that belongs to it but its events.

        Its samples can not be reached from then on; `prune` takes them off the disk.
        """
        _DELETE.send(self._connection, job_key=job.key)
        self._stored.pop(job.key, None)
        self._known.pop(job.id, None)

    def runs(self, job: Job) -> list[Run]:
        """The job's training processes, in the order of their numbers."""
        if job.key in self._without_runs:
            return []
        return [Run(*row) for row in _RUNS.rows(self._direct, job_key=job.key)]

    def save_run(self, job: Job, run: Run) -> None:
        """Stores a run, new or read before."""
        self._without_runs.discard(job.key)
        columns = ("job_key", *_RUN_FIELDS)
        row = (job.key, *astuple(run))
        write_rows(self._direct, runs, columns, [row], replace=True)


def _replica(job: Job) -> str:
    """The replica that has the job's stream open; empty: none has."""
    return job.session.replica if job.session is not None and job.session.connected else ""
