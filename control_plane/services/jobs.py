"""Use cases around jobs: create, read, list, label, delete."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING

from control_plane.domain.errors import Reason, Refusal
from control_plane.domain.job import Job, JobState, check_job_id, check_labels
from control_plane.domain.labels import edited
from control_plane.services.bus import JOBS, session_topic, updates_topic
from control_plane.services.records import Event, EventKind
from control_plane.services.views import JobView, need_job

if TYPE_CHECKING:
    from control_plane.domain.selector import Selector
    from control_plane.services.ports import Clock, Store, Transaction, WakeupBus
    from control_plane.services.telemetry import TelemetryHub

_SCAN = 200
MOST_SCANNED = 10_000
"""Jobs looked at for one page, so that it costs the same however few of them are wanted.

Where a bounded caller has none of these it goes on, so many at a time, to one that it has: a page
can end after that one only, as the place to go on from must not name a job of others.
"""


@dataclass(frozen=True, slots=True)
class JobPage:
    """A page of jobs; perhaps few or none though there are more after `next_after`."""

    jobs: tuple[JobView, ...]
    next_after: str | None


def new_job(job_id: str, labels: Mapping[str, str], method: str, now: datetime) -> Job:
    """A job that nobody has heard of before.

    Raises:
        Refusal: If the id or the labels are not allowed.
    """
    check_job_id(job_id)
    check_labels(labels)
    return Job(job_id, uuid.uuid4().hex, now, now, labels=dict(labels), method=method)


def job_event(kind: EventKind, job: Job, now: datetime, revision: int | None = None) -> Event:
    """The event of a change of a job or of one of its updates."""
    return Event(kind, job.id, job.uid, revision, now)


def check_etag(job: Job, etag: str) -> None:
    """Refuses a change of a job that is not as the caller knows it; empty: however it is.

    Raises:
        Refusal: ETAG_MISMATCH.
    """
    if etag and etag != job.etag:
        raise Refusal(
            Reason.ETAG_MISMATCH,
            f"job {job.id!r} has changed: its etag is {job.etag}, not {etag}; "
            "read it again and decide anew",
            metadata={"etag": job.etag},
        )


class JobService:
    """Creates, reads, lists, labels and deletes jobs."""

    def __init__(
        self,
        store: Store,
        clock: Clock,
        bus: WakeupBus,
        telemetry: TelemetryHub,
        connected: Callable[[Job], bool],
    ) -> None:
        """Takes its parts.

        Args:
            store: Durable state.
            clock: The time.
            bus: Wakes watchers.
            telemetry: The newest progress and metrics.
            connected: Says whether a job's stream is open.
        """
        self._store = store
        self._clock = clock
        self._bus = bus
        self._telemetry = telemetry
        self._connected = connected

    def views(self, tx: Transaction, jobs: Sequence[Job]) -> list[JobView]:
        """What callers see of jobs."""
        self._telemetry.read_ahead(tx, jobs)
        tx.read_ahead_updates([(job.key, job.revision) for job in jobs if job.revision])
        return [self.view(tx, job) for job in jobs]

    def view(self, tx: Transaction, job: Job) -> JobView:
        """What callers see of a job."""
        return self._telemetry.view(tx, job, connected=self._connected(job))

    async def create(
        self, job_id: str, labels: Mapping[str, str], method: str, *, validate_only: bool = False
    ) -> JobView:
        """Makes a job known before its trainer shows itself.

        Raises:
            Refusal: If it exists, or its id or labels are not allowed.
        """
        made = new_job(job_id, labels, method, self._clock())
        job = replace(made, label_edits=made.labels)  # a caller has said them

        def work(tx: Transaction) -> JobView:
            if tx.job(job_id) is not None:
                raise Refusal(
                    Reason.JOB_EXISTS,
                    f"job {job_id!r} exists already; use it, or choose another id",
                    metadata={"job": job_id},
                )
            if validate_only:
                tx.check_scope(job)
                return JobView(job, None, (), 0, None)
            stored = tx.insert_job(job)
            tx.append_event(job_event(EventKind.CREATED, stored, job.create_time))
            return self.view(tx, stored)

        view = await self._store.write(work)
        self._bus.notify(JOBS)
        return view

    async def get(self, job_id: str) -> JobView:
        """A job.

        Raises:
            Refusal: JOB_NOT_FOUND.
        """
        return await self._store.read(lambda tx: self.view(tx, need_job(tx, job_id)))

    async def list(
        self, selector: Selector, states: Iterable[JobState], *, after: str, limit: int
    ) -> JobPage:
        """A page of jobs, in the order of their ids."""
        wanted = tuple(states)

        def work(tx: Transaction, after: str) -> tuple[JobPage, str | None]:
            found: list[Job] = []
            last: str | None = None
            position: str | None = after
            scanned, size = 0, min(limit + 1, _SCAN)  # enough, where all of them are wanted
            while position is not None and len(found) <= limit and scanned < MOST_SCANNED:
                chunk = tx.jobs(after=position, limit=size, states=wanted)
                found += [job for job in chunk if selector.matches(job.selectable())]
                last = chunk[-1].id if chunk else last
                position = chunk.beyond
                scanned, size = scanned + size, _SCAN
            views = tuple(self.views(tx, found[:limit]))
            if len(found) > limit:
                return JobPage(views, views[-1].job.id), None
            # Without any job that the caller has, it is to be looked on from there.
            return JobPage(views, last if position else None), None if last else position

        place = after
        while True:
            page, look_on = await self._store.read(partial(work, after=place))
            if look_on is None:
                return page
            place = look_on

    async def label(
        self,
        job_id: str,
        put: Mapping[str, str],
        remove: Collection[str],
        etag: str,
        *,
        validate_only: bool = False,
    ) -> JobView:
        """Sets and removes labels. They stay so, whatever the job's agent says of the same keys.

        Raises:
            Refusal: If there is no such job, it has changed, or a label is not allowed.
        """
        now = self._clock()

        def work(tx: Transaction) -> tuple[JobView, bool]:
            before = need_job(tx, job_id)
            check_etag(before, etag)
            job = edited(before, put, remove, now)
            tx.check_scope(job)
            changed = job is not before and not validate_only
            if changed:
                tx.save_job(job)
                tx.append_event(job_event(EventKind.MODIFIED, job, now))
            return self.view(tx, job), changed

        view, changed = await self._store.write(work)
        if changed:
            self._bus.notify(JOBS)
            # Its agent may not be allowed to serve it any more.
            self._bus.notify(session_topic(job_id))
        return view

    async def delete(self, job_id: str, etag: str, *, validate_only: bool = False) -> None:
        """Deletes a job with its updates and metrics.

        Raises:
            Refusal: If there is none, it has changed, or its session is live.
        """
        now = self._clock()

        def work(tx: Transaction) -> Job:
            job = need_job(tx, job_id)
            check_etag(job, etag)
            if self._connected(job):
                raise Refusal(
                    Reason.JOB_HAS_LIVE_SESSION,
                    f"the trainer of job {job_id!r} is connected; stop it first",
                    metadata={"job": job_id},
                )
            if not validate_only:
                tx.delete_job(job)
                tx.append_event(job_event(EventKind.DELETED, job, now))
            return job

        job = await self._store.write(work)
        if not validate_only:
            self._telemetry.forget(job.key)
            self._bus.notify(JOBS)
            self._bus.notify(session_topic(job_id))
            self._bus.notify(updates_topic(job_id))
