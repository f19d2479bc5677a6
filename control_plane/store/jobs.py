"""Jobs and their runs."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import astuple, fields, replace
from functools import cache

from sqlalchemy import Connection, bindparam, delete, insert, select, update

from control_plane.domain.job import Job, JobState
from control_plane.domain.session import Run
from control_plane.store.bulk import write_rows
from control_plane.store.queries import Queries
from control_plane.store.schema import is_one_of, jobs, runs
from grpc_runtime.sql.prepared import Prepared

_FIELDS = tuple(field.name for field in fields(Job))
_FIXED = frozenset({"key", "id", "uid", "create_time"})
_CHANGING = tuple(name for name in _FIELDS if name not in _FIXED)
_RUN_FIELDS = tuple(field.name for field in fields(Run))

_JOB = select(*(jobs.c[name] for name in _FIELDS))
_BY_ID = _JOB.where(jobs.c.id == bindparam("id"))
_JOB_TO_READ = Prepared(_BY_ID)
_JOB_TO_CHANGE = Prepared(_BY_ID.with_for_update())
_INSERT = insert(jobs).values({name: bindparam(name) for name in _FIELDS if name != "key"})
_SAVE = Prepared(
    update(jobs)
    .where(jobs.c.key == bindparam("job_key"))
    .values({name: bindparam(name) for name in _CHANGING})
)
_DELETE = Prepared(delete(jobs).where(jobs.c.key == bindparam("job_key")))
_RUNS = Prepared(
    select(*(runs.c[name] for name in _RUN_FIELDS))
    .where(runs.c.job_key == bindparam("job_key"))
    .order_by(runs.c.number)
)


@cache
def _page(states: frozenset[JobState]) -> Prepared:
    """Jobs of the states, if any are given, in the order of their ids."""
    page = _JOB.where(jobs.c.id > bindparam("after"))
    if states:
        page = page.where(is_one_of(jobs.c.state, states))
    return Prepared(page.order_by(jobs.c.id).limit(bindparam("limit")))


class JobQueries(Queries):
    """The part of a transaction that is about jobs."""

    def __init__(self, connection: Connection, *, writing: bool) -> None:
        """See `Queries`."""
        super().__init__(connection, writing=writing)
        self._read: set[int] = set()

    def job(self, job_id: str) -> Job | None:
        """The job, or None."""
        statement = _JOB_TO_CHANGE if self._writing else _JOB_TO_READ
        for row in statement.rows(self._connection, id=job_id):
            job = Job(*row)
            self._read.add(job.key)
            return job
        return None

    def jobs(self, *, after: str = "", limit: int, states: Iterable[JobState] = ()) -> list[Job]:
        """Jobs in the order of their ids, after an id; of the given states, if any are given."""
        rows = _page(frozenset(states)).rows(self._connection, after=after, limit=limit)
        found = [Job(*row) for row in rows]
        self._read.update(job.key for job in found)
        return found

    def insert_job(self, job: Job) -> Job:
        """Stores a new job and returns it with its key. The id must not be in use.

        Raises:
            sqlalchemy.exc.IntegrityError: If it is.
        """
        values = {name: getattr(job, name) for name in _FIELDS if name != "key"}
        inserted = self._connection.execute(_INSERT, values).inserted_primary_key
        assert inserted is not None
        self._read.add(inserted.key)
        return replace(job, key=inserted.key)

    def save_job(self, job: Job) -> None:
        """Stores a job that was read before.

        Raises:
            RuntimeError: If it was not read in this transaction: what others have
                changed since would be lost.
        """
        if job.key not in self._read:
            raise RuntimeError(
                f"job {job.id!r} was not read in this transaction; read, change and save a job in "
                "the same one"
            )
        values = {name: getattr(job, name) for name in _CHANGING}
        _SAVE.run(self._connection, job_key=job.key, **values)

    def delete_job(self, job: Job) -> None:
        """Deletes a job and everything that belongs to it but its events.

        Its samples can not be reached from then on; `prune` takes them off the disk.
        """
        _DELETE.run(self._connection, job_key=job.key)
        self._read.discard(job.key)

    def runs(self, job: Job) -> list[Run]:
        """The job's training processes, in the order of their numbers."""
        return [Run(*row) for row in _RUNS.rows(self._connection, job_key=job.key)]

    def save_run(self, job: Job, run: Run) -> None:
        """Stores a run, new or read before."""
        columns = ("job_key", *_RUN_FIELDS)
        row = (job.key, *astuple(run))
        write_rows(self._connection, runs, columns, [row], replace=True)
