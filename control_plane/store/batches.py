"""Batches: one update each for many jobs."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import fields, replace
from typing import TYPE_CHECKING

from sqlalchemy import bindparam, func, insert, select, update

from control_plane.domain.batch import Batch, JobRefusal
from control_plane.domain.names import batch_name, parse_batch
from control_plane.domain.update import OPEN_STATES
from control_plane.services.records import Member, Page
from control_plane.store.bulk import Lookup, insert_rows
from control_plane.store.queries import Queries
from control_plane.store.schema import (
    IS_OF_A_BATCH,
    NOT_COUNTED,
    batch_refusals,
    batches,
    jobs,
    updates,
)
from grpc_runtime.sql.prepared import Prepared

if TYPE_CHECKING:
    from control_plane.domain.job import Job
    from control_plane.domain.update import UpdateState

_FIELDS = tuple(field.name for field in fields(Batch))
_GIVEN = tuple(name for name in _FIELDS if name != "key")
_REFUSAL = ("batch_key", "job_id", "reason", "message")

_BATCH = select(*(batches.c[name] for name in _FIELDS))
_BY_KEY = Prepared(_BATCH.where(batches.c.key == bindparam("key")))
_BY_REQUEST = Prepared(
    _BATCH.where(
        batches.c.author == bindparam("author"), batches.c.request_id == bindparam("request_id")
    )
)
_PAGE = Prepared(
    _BATCH.where(batches.c.key < bindparam("beyond"))
    .order_by(batches.c.key.desc())
    .limit(bindparam("limit"))
)
_INSERT = insert(batches).values({name: bindparam(name) for name in _GIVEN})
_NOT_COUNTED = Prepared(
    _BATCH.where(NOT_COUNTED, batches.c.key > bindparam("after"))
    .order_by(batches.c.key)
    .limit(bindparam("limit"))
)
_SAVE_ENDED = Prepared(
    update(batches).where(batches.c.key == bindparam("of")).values(ended=bindparam("ended"))
)
_BATCHES_OF_JOB = Prepared(
    select(updates.c.batch)
    .distinct()
    .where(updates.c.job_key == bindparam("job_key"), IS_OF_A_BATCH)
)
_OF_BATCH = (updates.c.batch == bindparam("batch")) & IS_OF_A_BATCH
_MEMBERS = Prepared(
    select(jobs.c.id, updates.c.job_key, updates.c.revision)
    .join_from(updates, jobs)
    .where(_OF_BATCH)
    .limit(bindparam("limit"))
)
_STATES = Prepared(select(updates.c.job_key, updates.c.state).where(_OF_BATCH))
_COUNTS = Lookup(
    lambda names: (
        select(updates.c.batch, updates.c.state, func.count())
        .where(updates.c.batch.in_(names), IS_OF_A_BATCH)
        .group_by(updates.c.batch, updates.c.state)
    )
)
_REFUSALS = Prepared(
    select(batch_refusals.c.job_id, batch_refusals.c.reason, batch_refusals.c.message)
    .where(batch_refusals.c.batch_key == bindparam("key"))
    .order_by(batch_refusals.c.job_id)
)
_NO_END = 2**63 - 1


class BatchQueries(Queries):
    """The part of a transaction that is about batches."""

    def batch(self, key: int) -> Batch | None:
        """The batch, or None."""
        rows = _BY_KEY.rows(self._connection, key=key)
        return Batch(*rows[0]) if rows else None

    def batch_by_request(self, author: str, request_id: str) -> Batch | None:
        """The batch that an author's request made, or None."""
        rows = _BY_REQUEST.rows(self._connection, author=author, request_id=request_id)
        return Batch(*rows[0]) if rows else None

    def batches(self, *, beyond: int | None, limit: int) -> Page[Batch, int]:
        """Batches, newest first, beyond one in that order."""
        before = _NO_END if beyond is None else beyond
        rows = _PAGE.rows(self._connection, beyond=before, limit=limit)
        found = [Batch(*row) for row in rows]
        return Page(found, found[-1].key if len(found) == limit else None)

    def insert_batch(self, batch: Batch, refusals: Mapping[str, JobRefusal]) -> Batch:
        """Stores a new batch, with the jobs that did not take it; returns it with its key.

        Raises:
            sqlalchemy.exc.IntegrityError: If its author has used its request id.
        """
        values = {name: getattr(batch, name) for name in _GIVEN}
        inserted = self._connection.execute(_INSERT, values).inserted_primary_key
        assert inserted is not None
        rows = [
            (inserted.key, job_id, refusal.reason, refusal.message)
            for job_id, refusal in refusals.items()
        ]
        insert_rows(self._connection, batch_refusals, _REFUSAL, rows)
        return replace(batch, key=inserted.key)

    def batch_members(self, batch: Batch, *, limit: int | None = None) -> list[Member]:
        """The updates of a batch, in the order of their jobs' ids; with a limit only some."""
        most = _NO_END if limit is None else limit
        rows = _MEMBERS.rows(self._connection, batch=batch_name(batch.key), limit=most)
        return sorted((Member(*row) for row in rows), key=lambda member: member.job_id)

    def batch_states(self, batch: Batch) -> dict[int, UpdateState]:
        """The states of a batch's updates, by job key."""
        return dict(_STATES.rows(self._connection, batch=batch_name(batch.key)))

    def batch_counts(self, of: Collection[Batch]) -> dict[int, dict[UpdateState, int]]:
        """How many updates of each batch are in which state, by the batch's key."""
        counts = {batch.key: dict(batch.ended or {}) for batch in of}
        keys = {batch_name(batch.key): batch.key for batch in of if batch.ended is None}
        for name, state, count in _COUNTS.rows(self._connection, list(keys)):
            counts[keys[name]][state] = int(count)
        return counts

    def uncounted_batches(self, *, after: int, limit: int) -> list[Batch]:
        """Batches whose counts are not stored, oldest first, after one in that order."""
        rows = _NOT_COUNTED.rows(self._connection, after=after, limit=limit)
        return [Batch(*row) for row in rows]

    def count_ended(self, batch: Batch) -> None:
        """Stores how many updates of a batch ended in which state, if none is open."""
        # Written first, so that a job of it is deleted before they are counted or after.
        _SAVE_ENDED.run(self._connection, of=batch.key, ended=None)
        counts = self.batch_counts([replace(batch, ended=None)])[batch.key]
        if not OPEN_STATES & counts.keys():
            _SAVE_ENDED.run(self._connection, of=batch.key, ended=counts)

    def _count_again(self, job: Job) -> None:
        """Forgets the counts of batches that a job is of, as its updates are about to go."""
        for name in sorted(
            row[0] for row in _BATCHES_OF_JOB.rows(self._connection, job_key=job.key)
        ):
            _SAVE_ENDED.send(self._connection, of=parse_batch(name, "batch"), ended=None)

    def batch_refusals(self, batch: Batch) -> dict[str, JobRefusal]:
        """Why jobs did not take a batch, by job id."""
        rows = _REFUSALS.rows(self._connection, key=batch.key)
        return {job_id: JobRefusal(reason, message) for job_id, reason, message in rows}
