"""Use cases around updates: submit, read, wait, cancel; and what settling one means."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

from control_plane.domain.acceptance import check_acceptable
from control_plane.domain.errors import Reason, Refusal, invalid, shutting_down
from control_plane.domain.job import (
    Job,
    trainer_may_have,
    with_desired,
    with_effective,
)
from control_plane.domain.series import lineage
from control_plane.domain.update import (
    GUARD,
    MAX_REASON,
    Applied,
    Cancelled,
    Expired,
    ExpiryCause,
    Outcome,
    Update,
    UpdateSpec,
    answer_again,
    as_happened,
    check_author,
    check_request_id,
    check_revision,
    request_cancel,
    settle,
)
from control_plane.services.bus import JOBS, session_topic, updates_topic
from control_plane.services.history import MOST_SCANNED
from control_plane.services.jobs import job_event
from control_plane.services.records import EventKind
from control_plane.services.standing import desired_anew
from control_plane.services.views import need_job, need_update

if TYPE_CHECKING:
    from control_plane.domain.session import Run
    from control_plane.domain.update import LocalUpdate
    from control_plane.services.history import HistoryQuery
    from control_plane.services.ports import Clock, Store, Transaction, WakeupBus
    from control_plane.services.telemetry import TelemetryHub

_SCAN = 100
MAX_WAIT = 3_600.0


@dataclass(frozen=True, slots=True)
class Submission:
    """A caller's request for an update; see `UpdateParametersRequest`."""

    job_id: str
    spec: UpdateSpec
    author: str
    request_id: str = ""
    expected_revision: int | None = None
    validate_only: bool = False
    trace_parent: str = ""


@dataclass(frozen=True, slots=True)
class LineageSpan:
    """Steps that one training process took; `last_step` None: it is the newest, and goes on."""

    instance_id: str
    first_step: int
    last_step: int | None


@dataclass(frozen=True, slots=True)
class UpdatePage:
    """A page of updates.

    Attributes:
        updates: The updates.
        next_beyond: The revision to go on beyond; None at the end.
        lineage: The steps that the job's weights went through, by training process.
    """

    updates: tuple[Update, ...]
    next_beyond: int | None
    lineage: tuple[LineageSpan, ...] = ()


def settle_in(tx: Transaction, job: Job, update: Update, outcome: Outcome, now: datetime) -> Job:
    """Settles an update within a transaction, with all that follows for its job.

    Returns:
        The job as it is then (stored).
    """
    settled = settle(update, outcome, now)
    if settled is update:
        return job
    tx.save_update(job, settled)
    if update.is_open:
        tx.notes.append(settled)
    effective, desired = job.effective, job.desired
    if isinstance(outcome, Applied) and outcome.rolled_back_by is None:
        effective = with_effective(job, settled, outcome)
    elif not settled.is_wanted and any(d.revision == settled.revision for d in job.desired):
        dropped = {change.parameter for change in settled.spec.changes}
        desired = desired_anew(tx, job, dropped)
    still_open = tx.first_open(job)
    job = job.changed(
        now,
        effective=effective,
        desired=desired,
        settled_revision=job.revision if still_open is None else still_open - 1,
    )
    tx.save_job(job)
    tx.append_event(job_event(EventKind.MODIFIED, job, now, update.revision))
    return job


def take_local(tx: Transaction, job: Job, local: LocalUpdate, now: datetime) -> tuple[Job, Update]:
    """Gives what a training process has changed by itself a revision; once for each request id.

    Returns:
        The job as it is then (stored), and the update.

    Raises:
        Refusal: If it can not be told, or a caller has used its request id.
    """
    spec = as_happened(local)
    existing = tx.update_by_request(job, local.request_id)
    if existing is None:
        update = Update(job.id, job.revision + 1, spec, GUARD, local.request_id, now)
        return accept_in(tx, job, update, now), update
    if not existing.is_guards:
        raise Refusal(
            Reason.REQUEST_ID_REUSED,
            f"request_id {local.request_id!r} belongs to revision {existing.revision}, which "
            f"{existing.author!r} sent; what a training process changes needs an id of its own",
            violations=[],
        )
    return job, existing


def accept_in(tx: Transaction, job: Job, update: Update, now: datetime) -> Job:
    """Stores a new update within a transaction.

    Returns:
        The job as it is then (stored).
    """
    return accept_all_in(tx, [(job, update)], now)[0]


def accept_all_in(
    tx: Transaction, accepted: Sequence[tuple[Job, Update]], now: datetime
) -> list[Job]:
    """Stores new updates of different jobs within a transaction.

    Returns:
        The jobs as they are then (stored).
    """
    tx.insert_updates(accepted)
    tx.notes.extend(update for _, update in accepted)
    jobs = [
        job.changed(now, revision=update.revision, desired=with_desired(job.desired, update))
        for job, update in accepted
    ]
    tx.save_accepting(jobs)
    for job in jobs:
        tx.append_event(job_event(EventKind.MODIFIED, job, now, job.revision))
    return jobs


def cancel_in(tx: Transaction, job: Job, update: Update, by: Cancelled, now: datetime) -> Update:
    """Withdraws an update within a transaction; see `request_cancel`.

    Returns:
        The update as it is then (stored).

    Raises:
        Refusal: If it is settled, or has happened already.
    """
    may_have_it = trainer_may_have(job, update)
    asked = request_cancel(update, by, now, trainer_may_have_it=may_have_it)
    if not asked.is_open:
        settle_in(tx, job, update, by, now)
    elif asked != update:
        tx.save_update(job, asked)
        tx.append_event(job_event(EventKind.MODIFIED, job, now, update.revision))
    return asked


def _due(tx: Transaction, now: datetime) -> list[tuple[str, int]]:
    """(job id, revision) of updates to expire; at most some hundred at once."""
    limit = _SCAN
    while True:
        overdue = tx.overdue(now, limit)
        tx.read_ahead_open({job_id for job_id, _ in overdue})
        due = [each for each in overdue if _expirable(tx, *each) is not None]
        if len(due) >= _SCAN or len(overdue) < limit:
            return due[:_SCAN]
        # Those that a trainer may have must not hold up the others.
        limit *= 2


def _expirable(tx: Transaction, job_id: str, revision: int) -> tuple[Job, Update] | None:
    """An overdue update with its job, if it is open still and no trainer can have it."""
    job = tx.job(job_id)
    update = tx.update(job, revision) if job is not None else None
    if job is None or update is None or not update.is_open or trainer_may_have(job, update):
        return None
    return job, update


class UpdateService:
    """Submits, reads, awaits and cancels updates."""

    def __init__(
        self,
        store: Store,
        clock: Clock,
        bus: WakeupBus,
        telemetry: TelemetryHub,
        *,
        max_open_updates: int,
    ) -> None:
        """Takes its parts.

        Args:
            store: Durable state.
            clock: The time.
            bus: Wakes sessions, watchers and those who wait.
            telemetry: Tells how far a job has come.
            max_open_updates: Most updates of a job that may be pending or delivered.
        """
        self._store = store
        self._clock = clock
        self._bus = bus
        self._telemetry = telemetry
        self._max_open = max_open_updates

    async def submit(self, submission: Submission) -> Update:
        """Accepts an update: it is valid and on disk when this returns.

        Raises:
            Refusal: Saying which rule was broken; nothing has changed then.
        """
        check_author(submission.author)
        if submission.request_id:
            check_request_id(submission.request_id)
        request_id = submission.request_id or f"server-{uuid.uuid4().hex}"
        now = self._clock()

        def work(tx: Transaction) -> Update:
            tx.read_ahead_to_accept(submission.job_id, submission.request_id)
            job = need_job(tx, submission.job_id)
            spec = submission.spec
            if submission.request_id:
                existing = tx.update_by_request(job, request_id)
                if existing is not None:
                    return answer_again(existing, spec)
            check_revision(submission.expected_revision, job.revision)
            check_acceptable(
                spec,
                job,
                self._telemetry.standings(tx, [job])[job.key],
                author=submission.author,
                now=now,
                max_open=self._max_open,
            )
            update = Update(
                *(job.id, job.revision + 1, spec, submission.author, request_id, now),
                trace_parent=submission.trace_parent,
            )
            if submission.validate_only:
                return update
            accept_in(tx, job, update, now)
            return update

        update = await self._store.write(work)
        if not submission.validate_only:
            self._notify(submission.job_id)
        return update

    async def get(self, job_id: str, revision: int) -> Update:
        """An update.

        Raises:
            Refusal: JOB_NOT_FOUND or UPDATE_NOT_FOUND.
        """
        return await self._store.read(lambda tx: need_update(tx, need_job(tx, job_id), revision))

    async def list(
        self,
        job_id: str,
        query: HistoryQuery,
        *,
        beyond: int | None,
        limit: int,
    ) -> UpdatePage:
        """A page of a job's updates; the selector of the query has no part in it.

        It may be short though there are more: it costs the same however few are wanted.
        """

        def work(tx: Transaction) -> UpdatePage:
            job = need_job(tx, job_id)
            spans = tuple(_lineage(tx.runs(job)))
            found: list[Update] = []
            at, scanned = beyond, 0
            while True:
                size = limit - len(found) + 1 if query.is_plain else _SCAN
                chunk = tx.updates(
                    job,
                    newest_first=query.newest_first,
                    beyond=at,
                    limit=size,
                    states=query.states,
                )
                for update in chunk:
                    if len(found) == limit or scanned == MOST_SCANNED:
                        return UpdatePage(tuple(found), at, spans)
                    at, scanned = update.revision, scanned + 1
                    if query.wants_time_and_author(update):
                        found.append(update)
                if len(chunk) < size:
                    return UpdatePage(tuple(found), None, spans)

        return await self._store.read(work)

    async def wait(self, job_id: str, revision: int, timeout: float) -> Update:
        """The update once it is settled, or as it stands after `timeout` seconds."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + min(timeout, MAX_WAIT)
        subscription = self._bus.subscribe(updates_topic(job_id))
        try:
            while True:
                update = await self.get(job_id, revision)
                if not update.is_open:
                    return update
                if self._bus.draining:
                    raise shutting_down()
                left = deadline - loop.time()
                if left <= 0 or not await subscription.wait(left):
                    return await self.get(job_id, revision)
        finally:
            subscription.close()

    async def cancel(
        self, job_id: str, revision: int, by: str, reason: str, timeout: float
    ) -> Update:
        """Withdraws an update.

        Where the trainer may have it, only the trainer can say whether it came in
        time: then this waits for the answer, up to `timeout` seconds.

        Raises:
            Refusal: If there is no such update, or it is settled.
        """
        if len(reason) > MAX_REASON:
            raise invalid("reason", f"got {len(reason)} characters, at most {MAX_REASON}")
        now = self._clock()

        def work(tx: Transaction) -> Update:
            job = need_job(tx, job_id)
            update = need_update(tx, job, revision)
            return cancel_in(tx, job, update, Cancelled(by, reason), now)

        update = await self._store.write(work)
        self._notify(job_id)
        return update if not update.is_open else await self.wait(job_id, revision, timeout)

    async def expire_due(self) -> None:
        """Expires open updates whose deadline has passed and that no trainer can have."""
        now = self._clock()
        due = await self._store.read(lambda tx: _due(tx, now))
        if not due:
            return

        def work(tx: Transaction) -> None:
            tx.read_ahead_open({job_id for job_id, _ in due})
            for job_id, revision in sorted(due):
                found = _expirable(tx, job_id, revision)
                if found is not None:
                    settle_in(tx, *found, deadline_passed(found[1]), now)

        await self._store.write(work)
        for job_id in {job_id for job_id, _ in due}:
            self._notify(job_id)

    def _notify(self, job_id: str) -> None:
        self._bus.notify(session_topic(job_id))
        self._bus.notify(updates_topic(job_id))
        self._bus.notify(JOBS)


def _lineage(runs: list[Run]) -> Iterator[LineageSpan]:
    instances = {run.number: run.instance_id for run in runs}
    for number, first, last in lineage(runs):
        yield LineageSpan(instances[number], first, last)


def job_ended(update: Update) -> Expired:
    """The outcome of an update that was still open when training reached its end."""
    message = "training reached its end before the update was due"
    if update.is_guards:
        message = (
            "the training process made this change by itself, and reached its end before it could "
            "say how it went"
        )
    return Expired(ExpiryCause.JOB_ENDED, message)


def deadline_passed(update: Update) -> Expired:
    """The outcome of an update that did not reach its trainer in time."""
    when = update.spec.deadline.isoformat() if update.spec.deadline else "unknown"
    return Expired(
        ExpiryCause.DEADLINE, f"the deadline {when} passed before a trainer had the update"
    )
