"""What the use cases need from outside: a store, a clock, a wake-up bus."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Protocol, TypeVar

if TYPE_CHECKING:
    from control_plane.domain.access import Token
    from control_plane.domain.batch import Batch, JobRefusal
    from control_plane.domain.job import Job, JobState
    from control_plane.domain.series import Sample
    from control_plane.domain.session import Run
    from control_plane.domain.update import Update, UpdateState
    from control_plane.services.records import (
        Event,
        Member,
        Page,
        Place,
        Scanned,
        Telemetry,
        TelemetryBatch,
    )
    from grpc_runtime.audit.records import AuditPlace, AuditRecord

T = TypeVar("T")

Clock = Callable[[], datetime]
"""The time now, with UTC as its zone."""

Steady = Callable[[], float]
"""Seconds since some moment: they pass evenly, also while somebody sets the clock."""


class Transaction(Protocol):
    """Reads and writes within one transaction.

    All of it is visible to others after the commit, or none of it is. Writes are
    seen by later reads of the same transaction. Instances must not be kept after
    the function that they were handed to.

    Attributes:
        notes: Updates accepted or settled here, for whoever counts them after the commit.
    """

    notes: list[Update]

    def job(self, job_id: str) -> Job | None:
        """The job, or None."""

    def jobs(
        self, *, after: str = "", limit: int, states: Iterable[JobState] = ()
    ) -> Page[Job, str]:
        """Jobs in the order of their ids, after an id; of the given states, if any are given.

        `limit` are looked at. All of them are there, but for a caller who may not see them all.
        """

    def unheard_jobs(self, replicas: Collection[str]) -> list[Job]:
        """Jobs that seem to have a stream, or to be alive, and none of the replicas has it open."""

    def jobs_named(self, ids: Iterable[str]) -> list[Job]:
        """Those of the jobs that exist, in the order of their ids."""

    def selectable_jobs(
        self, *, after: str, limit: int, states: Iterable[JobState] = ()
    ) -> Page[tuple[str, dict[str, str]], str]:
        """(id, what selectors see) of jobs in the order of their ids, as from `jobs`."""

    def check_scope(self, job: Job) -> None:
        """Makes sure that a job, as it would be, is one that the caller may touch.

        Storing it does so too; this is for those who only want to know.

        Raises:
            Refusal: OUT_OF_SCOPE, in a transaction for a scoped caller.
        """

    def insert_job(self, job: Job) -> Job:
        """Stores a new job and returns it with its key. The id must not be in use."""

    def save_job(self, job: Job) -> None:
        """Stores a job that was read in this same transaction."""

    def save_accepting(self, jobs_: Sequence[Job]) -> None:
        """Stores of jobs that were read before what accepting updates changes in them."""

    def delete_job(self, job: Job) -> None:
        """Deletes a job and everything that belongs to it but its events.

        Its samples can not be found any more, but their room is freed by `prune`.
        """

    def update(self, job: Job, revision: int) -> Update | None:
        """The update, or None."""

    def update_by_request(self, job: Job, request_id: str) -> Update | None:
        """The update that a request made, or None."""

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

    def open_updates(self, job: Job) -> list[Update]:
        """Updates that are pending or delivered, oldest first."""

    def read_ahead_open(self, ids: Iterable[str]) -> None:
        """Reads jobs with their open updates at once, for when each is asked for."""

    def first_open(self, job: Job) -> int | None:
        """Revision of the oldest update that is pending or delivered; None: there is none."""

    def applied_above(self, job: Job, floor: int) -> list[int]:
        """Revisions above `floor` in state APPLIED, ascending."""

    def overdue(self, now: datetime, limit: int) -> list[tuple[str, int]]:
        """(job id, revision) of open updates whose deadline has passed, oldest deadline first."""

    def insert_updates(self, made: Iterable[tuple[Job, Update]]) -> None:
        """Stores new updates, each of its job. Revisions and request ids must not be in use."""

    def save_update(self, job: Job, update: Update) -> None:
        """Stores an update that was read before."""

    def updates_at(self, places: Collection[tuple[int, int]]) -> dict[tuple[int, int], Update]:
        """Those of the updates that exist, by (job key, revision)."""

    def read_ahead_updates(self, places: Collection[tuple[int, int]]) -> None:
        """Reads updates, by (job key, revision), at once, for when they are asked for."""

    def count_open_of(self, of: Iterable[Job]) -> dict[int, int]:
        """How many updates are pending or delivered, by job key; without those of none."""

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

    def batch(self, key: int) -> Batch | None:
        """The batch, or None."""

    def batch_by_request(self, author: str, request_id: str) -> Batch | None:
        """The batch that an author's request made, or None."""

    def batches(self, *, beyond: int | None, limit: int) -> Page[Batch, int]:
        """Batches, newest first, beyond one in that order; `limit` are looked at, as of `jobs`."""

    def insert_batch(self, batch: Batch, refusals: Mapping[str, JobRefusal]) -> Batch:
        """Stores a new batch, with the jobs that did not take it; returns it with its key.

        Its author must not have used its request id.
        """

    def batch_members(self, batch: Batch, *, limit: int | None = None) -> list[Member]:
        """The updates of a batch, in the order of their jobs' ids; with a limit only some."""

    def batch_states(self, batch: Batch) -> dict[int, UpdateState]:
        """The states of a batch's updates, by job key."""

    def batch_counts(self, of: Collection[Batch]) -> dict[int, dict[UpdateState, int]]:
        """How many updates of each batch are in which state, by the batch's key.

        Takes no longer for a large batch than for a small one where they have been counted.
        """

    def uncounted_batches(self, *, after: int, limit: int) -> list[Batch]:
        """Batches whose counts are not stored, oldest first, after one in that order."""

    def count_ended(self, batch: Batch) -> None:
        """Stores how many updates of a batch ended in which state, if none is open."""

    def batch_refusals(self, batch: Batch) -> dict[str, JobRefusal]:
        """Why jobs did not take a batch, by job id."""

    def runs(self, job: Job) -> list[Run]:
        """The job's training processes, in the order of their numbers."""

    def save_run(self, job: Job, run: Run) -> None:
        """Stores a run, new or read before."""

    def append_event(self, event: Event) -> None:
        """Stores an event at the next position."""

    def events(self, *, after: int, limit: int) -> list[Event]:
        """Events after a position, in order."""

    def event_span(self) -> tuple[int, int]:
        """(oldest position that can be gone on from, newest position).

        Going on from P needs every event after P, so the oldest such position is the
        newest one that was pruned, or 0.
        """

    def add_telemetry(self, batches: Iterable[TelemetryBatch]) -> None:
        """Stores samples and the newest telemetry. A sample again takes the older one's place.

        Batches of jobs that are gone are left out without a word, and so is the newest
        telemetry of a session where that of a later one is there.
        """

    def telemetry(self, job: Job) -> Telemetry | None:
        """The newest telemetry of a job as stored, or None."""

    def read_ahead_to_accept(self, job_id: str, request_id: str) -> None:
        """Reads at once what accepting an update of a job asks for.

        Args:
            job_id: The job.
            request_id: Of the caller; empty: without one.
        """

    def read_ahead_telemetry(self, of: Iterable[Job]) -> None:
        """Reads the newest telemetry of many jobs at once, for when it is asked for."""

    def metric_names(self, job: Job) -> list[str]:
        """Names of the metrics that the job has samples of, in order."""

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
        """Samples of a metric in the order of their steps.

        Args:
            job: The job.
            name: The metric.
            spans: (run number, first step, last step or None), as from `lineage`.
            start_time: Microseconds since 1970, included.
            end_time: Microseconds since 1970, not included.
            last: Only the newest so many.
        """

    def beat(self, replica: str) -> dict[str, int]:
        """Counts a replica on by one; returns how far each replica has counted."""

    def forget_replica(self, replica: str) -> None:
        """Takes a replica that is gone off the list."""

    def token(self, token_id: str) -> Token | None:
        """The token, or None."""

    def token_by_digest(self, digest: str) -> Token | None:
        """The token whose secret has that digest, or None."""

    def tokens(self, *, active_at: datetime | None, beyond: int | None, limit: int) -> list[Token]:
        """Tokens, newest first, beyond one in that order.

        Args:
            active_at: Only those that are worth something at that time; None: all.
            beyond: The key of the last one that is known; None: from the newest.
            limit: How many.
        """

    def insert_token(self, token: Token, digest: str) -> Token:
        """Stores a new token and returns it with its key."""

    def revoke_token(self, key: int, time: datetime) -> None:
        """Stores that a token was revoked."""

    def tokens_used(self, times: Mapping[int, datetime]) -> None:
        """Stores when tokens were last used, by their keys; never an earlier time for a later."""

    def ended_tokens(self, now: datetime) -> set[str]:
        """Ids of the tokens that are revoked or expired."""

    def prune_tokens(self, before: datetime, limit: int) -> int:
        """Deletes at most `limit` tokens, those revoked or expired before a time.

        Returns:
            How many were deleted.
        """

    def add_audit_records(self, records: Iterable[AuditRecord]) -> None:
        """Stores new records."""

    def scan_audit_records(
        self,
        *,
        beyond: AuditPlace,
        start: datetime,
        principal: str = "",
        root: str = "",
        limit: int,
    ) -> list[AuditRecord]:
        """Records beyond a place, newest first.

        Args:
            beyond: The place.
            start: The oldest time.
            principal: Only of this one; empty: of all.
            root: Only about what belongs to this (see `root_of`); empty: whatever. Only one of
                the two.
            limit: How many.
        """

    def prune_audit_records(self, before: datetime, limit: int) -> int:
        """Deletes at most `limit` records, those before a time; returns how many were deleted."""

    def prune(
        self, *, samples_before: int | None, events_before: datetime | None, limit: int
    ) -> int:
        """Deletes at most `limit` old rows of each kind; returns how many were deleted.

        Args:
            samples_before: Samples taken before this (microseconds since 1970) go.
            events_before: Events before this go.
            limit: So that no transaction gets long.
        """


class Store(Protocol):
    """Durable state.

    A write returns after its commit is on disk. Writes take effect one after the
    other, as if each had the store to itself; a function may be run again if the
    transaction has to be repeated, so it must have no other effects.

    Writers that read a job in order to change it wait for one another. Whoever locks
    several reads them in the order of their ids, so that no two wait for each other.
    """

    @property
    def replica(self) -> str:
        """What this server is called among those that share the store."""

    @property
    def is_shared(self) -> bool:
        """Whether there can be others."""

    async def write(self, work: Callable[[Transaction], T]) -> T:
        """Runs `work` in a transaction; returns its result after the commit.

        An exception from `work` undoes its own writes, and nobody else's, and is raised here.
        """

    async def read(self, work: Callable[[Transaction], T]) -> T:
        """Runs `work` on a consistent view of what is committed. It must not write."""

    async def follow(self, heard: Callable[[Sequence[Event] | None], None]) -> None:
        """Tells of what is committed without a caller here who would: runs until cancelled.

        That is what other replicas write, and what callers wrote who have gone meanwhile.

        Args:
            heard: Is called with the events; None: some may have been missed.
        """

    async def close(self) -> None:
        """Finishes what was begun and closes the files."""


class WakeupBus(Protocol):
    """Tells those who wait that something may have changed.

    Wake-ups carry no data: the store is the truth.

    Attributes:
        draining: The server is shutting down: nobody should begin or go on to wait.
    """

    draining: bool

    def notify(self, topic: str) -> None:
        """Wakes everybody who is subscribed to the topic."""

    def subscribe(self, topic: str) -> Subscription:
        """Begins to listen. Subscribe first and read the store then, so that nothing is missed."""

    def attach(self, topic: str, subscriber: Wakeable) -> None:
        """Wakes somebody at each wake-up of a topic, until `remove`."""

    def remove(self, topic: str, subscriber: Wakeable) -> None:
        """Forgets a subscriber."""


class Wakeable(Protocol):
    """Somebody who is told that there may be something new."""

    def wake(self) -> None:
        """Is called for every wake-up; must not wait, nor subscribe to anything."""


class Subscription(Protocol):
    """A place to wait for wake-ups. Wake-ups while nobody waits are remembered, as one."""

    async def wait(self, timeout: float | None = None) -> bool:
        """Waits for a wake-up; returns whether there was one within `timeout` seconds."""

    def wake(self) -> None:
        """Wakes this subscriber alone."""

    def close(self) -> None:
        """Ends listening."""
