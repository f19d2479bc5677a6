"""The store as a caller may see it: jobs that are not the caller's are not there.

Use cases need not think of it, and so can not forget it: they are given this store, and what
they read and write passes here. What a scoped caller may not do at all is not here either.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Final, TypeVar, cast

from control_plane.domain.access import Scope, outside
from control_plane.domain.errors import Reason, Refusal

if TYPE_CHECKING:
    from control_plane.domain.batch import Batch
    from control_plane.domain.job import Job, JobState
    from control_plane.domain.update import Update
    from control_plane.services.ports import Store, Transaction
    from control_plane.services.records import Event

T = TypeVar("T")

_LOOKED_AT_ONCE: Final = 64

ScopeNow = Callable[[], Scope]
"""The scope of whoever is being served; everything, where nobody is."""

HARMLESS: Final = frozenset(
    {
        # Of a job or a batch that was read here before.
        "applied_above",
        "batch_counts",
        "batch_members",
        "batch_refusals",
        "batch_states",
        "count_open",
        "count_open_of",
        "delete_job",
        "first_open",
        "insert_batch",
        "insert_updates",
        "metric_names",
        "open_updates",
        # What is read ahead is given to nobody who may not ask for it.
        "read_ahead_to_accept",
        "read_ahead_telemetry",
        "read_ahead_updates",
        "runs",
        "samples",
        "save_accepting",
        "save_run",
        "save_update",
        "telemetry",
        "update",
        "update_by_request",
        "updates",
        # A caller's own.
        "batch_by_request",
        # Tell when something happened, and to which job: watches leave out what is not for all.
        "append_event",
        "event_span",
        "events",
        # Tells in which places updates are, for listings that ask for the scope.
        "scan_updates",
        "notes",
    }
)
"""What a transaction may do for a scoped caller just as for any other."""


class ScopedStore:
    """A store that shows everybody only what is theirs."""

    def __init__(self, store: Store, scope_now: ScopeNow) -> None:
        """Takes its parts.

        Args:
            store: With everything in it.
            scope_now: The scope of whoever is being served.
        """
        self._store = store
        self._scope_now = scope_now
        self.replica = store.replica
        self.is_shared = store.is_shared

    async def write(self, work: Callable[[Transaction], T]) -> T:
        """Runs `work` in a transaction; returns its result after the commit."""
        return await self._store.write(self._within_scope(work))

    async def read(self, work: Callable[[Transaction], T]) -> T:
        """Runs `work` on a consistent view of what is committed. It must not write."""
        return await self._store.read(self._within_scope(work))

    async def follow(self, heard: Callable[[Sequence[Event] | None], None]) -> None:
        """Tells of what is committed without a caller here who would: runs until cancelled."""
        await self._store.follow(heard)

    async def close(self) -> None:
        """Finishes what was begun and closes the files."""
        await self._store.close()

    def _within_scope(self, work: Callable[[Transaction], T]) -> Callable[[Transaction], T]:
        # Asked here, in the caller's own context: `work` may run in another one.
        scope = self._scope_now()
        if scope.is_everything:
            return work
        return lambda tx: work(cast("Transaction", ScopedTransaction(tx, scope)))


class ScopedTransaction:
    """A transaction that knows no other jobs than those in a scope.

    It has what is below and in `HARMLESS`, and nothing else of
    `control_plane.services.ports.Transaction`.
    """

    def __init__(self, tx: Transaction, scope: Scope) -> None:
        """Looks at a transaction through a scope."""
        self._tx = tx
        self._scope = scope

    def __getattr__(self, name: str) -> Any:
        if name in HARMLESS:
            return getattr(self._tx, name)
        raise AttributeError(f"a transaction for a scoped caller has no {name!r}")

    def _has(self, job: Job) -> bool:
        return self._scope.has(job.id, job.selectable())

    def job(self, job_id: str) -> Job | None:
        """The job, or None."""
        if not self._scope.names(job_id):
            return None
        job = self._tx.job(job_id)
        return job if job is not None and self._has(job) else None

    def jobs(self, *, after: str = "", limit: int, states: Iterable[JobState] = ()) -> list[Job]:
        """Jobs in the order of their ids, after an id; of the given states, if any are given."""
        wanted = tuple(states)
        return _filled(
            limit,
            after,
            lambda beyond: self._tx.jobs(after=beyond, limit=limit, states=wanted),
            self._has,
            lambda job: job.id,
        )

    def jobs_named(self, ids: Iterable[str]) -> list[Job]:
        """Those of the jobs that exist, in the order of their ids."""
        named = [job_id for job_id in ids if self._scope.names(job_id)]
        return [job for job in self._tx.jobs_named(named) if self._has(job)]

    def selectable_jobs(
        self, *, after: str, limit: int, states: Iterable[JobState] = ()
    ) -> list[tuple[str, dict[str, str]]]:
        """(id, what selectors see) of jobs in the order of their ids, as from `jobs`."""
        wanted = tuple(states)
        return _filled(
            limit,
            after,
            lambda beyond: self._tx.selectable_jobs(after=beyond, limit=limit, states=wanted),
            lambda each: self._scope.has(*each),
            lambda each: each[0],
        )

    def check_scope(self, job: Job) -> None:
        """Makes sure that a job, as it would be, is one that the caller may touch.

        Raises:
            Refusal: OUT_OF_SCOPE.
        """
        if not self._has(job):
            raise outside(job.id, self._scope)

    def insert_job(self, job: Job) -> Job:
        """Stores a new job and returns it with its key.

        Raises:
            Refusal: OUT_OF_SCOPE, or JOB_EXISTS if the job is there for others.
        """
        self.check_scope(job)
        if self._tx.job(job.id) is not None:
            raise Refusal(
                Reason.JOB_EXISTS,
                f"job {job.id!r} can not be made or served: the name is that of a job which is"
                " not among the caller's; choose another id, or have that job's labels changed",
                metadata={"job": job.id},
            )
        return self._tx.insert_job(job)

    def save_job(self, job: Job) -> None:
        """Stores a job that was read in this same transaction.

        Raises:
            Refusal: OUT_OF_SCOPE, its labels would take it out of the caller's hands.
        """
        self.check_scope(job)
        self._tx.save_job(job)

    def updates_at(self, places: Collection[tuple[int, int]]) -> dict[tuple[int, int], Update]:
        """Those of the updates that exist, by (job key, revision)."""
        found = self._tx.updates_at(places)
        seen = {job.id for job in self.jobs_named(sorted({each.job_id for each in found.values()}))}
        return {place: each for place, each in found.items() if each.job_id in seen}

    def batch(self, key: int) -> Batch | None:
        """The batch if all its jobs are in the scope, or None."""
        batch = self._tx.batch(key)
        return batch if batch is not None and self._has_all_of(batch) else None

    def batches(self, *, beyond: int | None, limit: int) -> list[Batch]:
        """Batches whose jobs are all in the scope, newest first, beyond one in that order."""
        return _filled(
            limit,
            beyond,
            lambda after: self._tx.batches(beyond=after, limit=limit),
            self._has_all_of,
            lambda batch: batch.key,
        )

    def _has_all_of(self, batch: Batch) -> bool:
        found = {member.job_id for member in self._tx.batch_members(batch)}
        ids = sorted(found | set(self._tx.batch_refusals(batch)))
        if not all(map(self._scope.names, ids)):
            return False
        # Some at a time: of others' batches the first ones are enough to know.
        parts = (ids[at : at + _LOOKED_AT_ONCE] for at in range(0, len(ids), _LOOKED_AT_ONCE))
        return all(len(self.jobs_named(part)) == len(part) for part in parts)


_Item = TypeVar("_Item")
_Place = TypeVar("_Place")


def _filled(
    limit: int,
    after: _Place,
    more: Callable[[_Place], list[_Item]],
    wanted: Callable[[_Item], bool],
    place: Callable[[_Item], _Place],
) -> list[_Item]:
    """As many wanted items as were asked for, if there are so many: fewer mean the end."""
    found: list[_Item] = []
    while True:
        chunk = more(after)
        found += filter(wanted, chunk)
        if len(found) >= limit or len(chunk) < limit:
            return found[:limit]
        after = place(chunk[-1])
