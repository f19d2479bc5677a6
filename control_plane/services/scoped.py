"""The store as a caller may see it: jobs that are not the caller's are not there.

Use cases need not think of it, and so can not forget it: they are given this store, and what
they read and write passes here. What a scoped caller may not do at all is not here either.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from typing import TYPE_CHECKING, Any, Final, TypeVar, cast

from control_plane.domain.access import Scope, outside
from control_plane.domain.errors import Reason, Refusal
from control_plane.services.passing import PassingStore
from control_plane.services.records import Page

if TYPE_CHECKING:
    from control_plane.domain.batch import Batch
    from control_plane.domain.job import Job, JobState
    from control_plane.domain.update import Update
    from control_plane.services.ports import Store, Transaction

T = TypeVar("T")

_LOOKED_AT_FIRST: Final = 8
"""Jobs of a batch: of others' batches so many are mostly enough to know."""

ScopeNow = Callable[[], Scope]
"""The scope of whoever is being served; everything, where nobody is."""

NameNow = Callable[[], str]
"""The name of whoever is being served."""

HARMLESS: Final = frozenset(
    {
        # Of a job or a batch that was read here before.
        "applied_above",
        "batch_counts",
        "batch_members",
        "batch_refusals",
        "batch_states",
        "count_open_of",
        "delete_job",
        "first_open",
        "insert_batch",
        "insert_updates",
        "metric_names",
        "open_updates",
        # What is read ahead is given to nobody who may not ask for it.
        "read_ahead_open",
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


class ScopedStore(PassingStore):
    """A store that shows everybody only what is theirs."""

    def __init__(self, store: Store, scope_now: ScopeNow, name_now: NameNow) -> None:
        """Takes its parts.

        Args:
            store: With everything in it.
            scope_now: The scope of whoever is being served.
            name_now: Who that is; is asked only where the scope is not everything.
        """
        super().__init__(store)
        self._scope_now = scope_now
        self._name_now = name_now

    async def write(self, work: Callable[[Transaction], T]) -> T:
        """Runs `work` in a transaction; returns its result after the commit."""
        return await super().write(self._within_scope(work))

    async def read(self, work: Callable[[Transaction], T]) -> T:
        """Runs `work` on a consistent view of what is committed. It must not write."""
        return await super().read(self._within_scope(work))

    def _within_scope(self, work: Callable[[Transaction], T]) -> Callable[[Transaction], T]:
        # Asked here, in the caller's own context: `work` may run in another one.
        scope = self._scope_now()
        if scope.is_everything:
            return work
        name = self._name_now()
        return lambda tx: work(cast("Transaction", ScopedTransaction(tx, scope, name)))


class ScopedTransaction:
    """A transaction that knows no other jobs than those in a scope.

    It has what is below and in `HARMLESS`, and nothing else of
    `control_plane.services.ports.Transaction`.
    """

    def __init__(self, tx: Transaction, scope: Scope, name: str) -> None:
        """Looks at a transaction through the scope of somebody of that name."""
        self._tx = tx
        self._scope = scope
        self._name = name

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

    def jobs(
        self, *, after: str = "", limit: int, states: Iterable[JobState] = ()
    ) -> Page[Job, str]:
        """Those of the next jobs, in the order of their ids, that are in the scope."""
        page = self._tx.jobs(after=after, limit=limit, states=states)
        return Page(filter(self._has, page), page.beyond)

    def jobs_named(self, ids: Iterable[str]) -> list[Job]:
        """Those of the jobs that exist, in the order of their ids."""
        named = [job_id for job_id in ids if self._scope.names(job_id)]
        return [job for job in self._tx.jobs_named(named) if self._has(job)]

    def selectable_jobs(
        self, *, after: str, limit: int, states: Iterable[JobState] = ()
    ) -> Page[tuple[str, dict[str, str]], str]:
        """(id, what selectors see) of jobs in the order of their ids, as from `jobs`."""
        page = self._tx.selectable_jobs(after=after, limit=limit, states=states)
        return Page((each for each in page if self._scope.has(*each)), page.beyond)

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
        """The batch if it is for the caller to see, or None."""
        batch = self._tx.batch(key)
        return batch if batch is not None and self._may_see(batch) else None

    def batches(self, *, beyond: int | None, limit: int) -> Page[Batch, int]:
        """Those of the next batches, newest first, that are for the caller to see."""
        page = self._tx.batches(beyond=beyond, limit=limit)
        return Page(filter(self._may_see, page), page.beyond)

    def _may_see(self, batch: Batch) -> bool:
        """Whether all jobs of a batch are in the scope.

        Of a job that was deleted nobody can tell whether it was. A batch's author knows of it
        anyway, and of what was refused: there only the jobs count that have its update.
        """
        members = self._tx.batch_members(batch, limit=_LOOKED_AT_FIRST)
        if len(members) == _LOOKED_AT_FIRST and self._has_all({m.job_id for m in members}):
            members = self._tx.batch_members(batch)
        ids = {member.job_id for member in members}
        if batch.author != self._name:
            if batch.refused:
                ids |= self._tx.batch_refusals(batch).keys()
            if len(ids) < batch.total:
                return False
        return self._has_all(ids)

    def _has_all(self, ids: Collection[str]) -> bool:
        return all(map(self._scope.names, ids)) and len(self.jobs_named(ids)) == len(ids)
