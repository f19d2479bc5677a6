"""What the use cases need from outside: a store, a clock, a wake-up bus."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Protocol, TypeVar

if TYPE_CHECKING:
    from control_plane.domain.job import Job, JobState, MetricPoint, Progress
    from control_plane.domain.series import Sample
    from control_plane.domain.session import MetricColumn, Run
    from control_plane.domain.update import Update, UpdateState

T = TypeVar("T")

Clock = Callable[[], datetime]
"""The time now, with UTC as its zone."""


class EventKind(StrEnum):
    """What happened to a job, durably."""

    CREATED = "created"
    MODIFIED = "modified"
    DELETED = "deleted"


@dataclass(frozen=True, slots=True)
class Event:
    """A durable change, in the order of commits.

    Attributes:
        position: Grows with every event; 0 until stored.
        kind: What happened.
        job_id: To which job.
        job_uid: Which of the jobs that had this id.
        revision: The update that changed; None: none did.
        time: When.
    """

    kind: EventKind
    job_id: str
    job_uid: str
    revision: int | None
    time: datetime
    position: int = 0


@dataclass(frozen=True, slots=True)
class Telemetry:
    """The newest progress and metrics of a job, as stored."""

    progress: Progress | None
    metrics: tuple[MetricPoint, ...]
    dropped_samples: int


@dataclass(frozen=True, slots=True)
class TelemetryBatch:
    """What a job's telemetry brings to the store in one flush."""

    job_key: int
    run_number: int
    columns: Sequence[MetricColumn]
    latest: Telemetry


class Transaction(Protocol):
    """Reads and writes within one transaction.

    All of it is visible to others after the commit, or none of it is. Writes are
    seen by later reads of the same transaction. Instances must not be kept after
    the function that they were handed to.
    """

    def job(self, job_id: str) -> Job | None:
        """The job, or None."""

    def jobs(self, *, after: str = "", limit: int, states: Iterable[JobState] = ()) -> list[Job]:
        """Jobs in the order of their ids, after an id; of the given states, if any are given."""

    def insert_job(self, job: Job) -> Job:
        """Stores a new job and returns it with its key. The id must not be in use."""

    def save_job(self, job: Job) -> None:
        """Stores a job that was read in this same transaction."""

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

    def count_open(self, job: Job) -> int:
        """How many updates are pending or delivered."""

    def applied_above(self, job: Job, floor: int) -> list[int]:
        """Revisions above `floor` in state APPLIED, ascending."""

    def overdue(self, now: datetime, limit: int) -> list[tuple[str, int]]:
        """(job id, revision) of open updates whose deadline has passed, oldest deadline first."""

    def insert_update(self, job: Job, update: Update) -> None:
        """Stores a new update. Its revision and its request id must not be in use."""

    def save_update(self, job: Job, update: Update) -> None:
        """Stores an update that was read before."""

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

        Batches of jobs that are gone are left out without a word.
        """

    def telemetry(self, job: Job) -> Telemetry | None:
        """The newest telemetry of a job as stored, or None."""

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
    """

    async def write(self, work: Callable[[Transaction], T]) -> T:
        """Runs `work` in a transaction; returns its result after the commit.

        An exception from `work` undoes its own writes, and nobody else's, and is raised here.
        """

    async def read(self, work: Callable[[Transaction], T]) -> T:
        """Runs `work` on a consistent view of what is committed. It must not write."""

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


class Subscription(Protocol):
    """A place to wait for wake-ups. Wake-ups while nobody waits are remembered, as one."""

    async def wait(self, timeout: float | None = None) -> bool:
        """Waits for a wake-up; returns whether there was one within `timeout` seconds."""

    def wake(self) -> None:
        """Wakes this subscriber alone."""

    def close(self) -> None:
        """Ends listening."""
