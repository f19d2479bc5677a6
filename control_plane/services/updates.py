"""Use cases around updates: submit, read, wait, cancel; and what settling one means."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import datetime
from typing import TYPE_CHECKING

from control_plane.domain.errors import Reason, Refusal, invalid, shutting_down
from control_plane.domain.job import (
    Desired,
    Job,
    check_accepts_updates,
    check_action,
    trainer_may_have,
    with_desired,
    with_effective,
)
from control_plane.domain.parameter import Change, check_changes
from control_plane.domain.update import (
    MAX_REASON,
    OPEN_STATES,
    Applied,
    Cancelled,
    Expired,
    ExpiryCause,
    Outcome,
    Update,
    UpdateSpec,
    UpdateState,
    answer_again,
    check_request_id,
    check_revision,
    check_spec,
    request_cancel,
    settle,
)
from control_plane.services.bus import JOBS, session_topic, updates_topic
from control_plane.services.jobs import job_event
from control_plane.services.ports import Clock, EventKind, Store, Transaction, WakeupBus
from control_plane.services.views import need_job, need_update

if TYPE_CHECKING:
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


@dataclass(frozen=True, slots=True)
class UpdatePage:
    """A page of updates; `next_beyond` is the revision to go on beyond, or None at the end."""

    updates: tuple[Update, ...]
    next_beyond: int | None


def settle_in(tx: Transaction, job: Job, update: Update, outcome: Outcome, now: datetime) -> Job:
    """Settles an update within a transaction, with all that follows for its job.

    Returns:
        The job as it is then (stored).
    """
    settled = settle(update, outcome, now)
    if settled == update:
        return job
    tx.save_update(job, settled)
    if isinstance(outcome, Applied):
        job = replace(job, effective=with_effective(job, settled, outcome))
    elif settled.state is not UpdateState.APPLIED:
        job = replace(job, desired=_desired_without(tx, job, settled))
    still_open = tx.open_updates(job)
    job = replace(
        job, settled_revision=still_open[0].revision - 1 if still_open else job.revision
    ).changed(now)
    tx.save_job(job)
    tx.append_event(job_event(EventKind.MODIFIED, job, now, update.revision))
    return job


def _desired_without(tx: Transaction, job: Job, dropped: Update) -> tuple[Desired, ...]:
    """What is desired once an update has come to nothing: older changes count again."""
    kept = tuple(d for d in job.desired if d.revision != dropped.revision)
    lost = {d.change.parameter for d in job.desired} - {d.change.parameter for d in kept}
    lost |= {
        change.parameter
        for change in dropped.spec.changes
        if any(d.revision == dropped.revision for d in job.desired)
    }
    if not lost:
        return kept
    older: list[Update] = []
    beyond: int | None = None
    alive = (*OPEN_STATES, UpdateState.APPLIED)
    while chunk := tx.updates(job, beyond=beyond, limit=_SCAN, states=alive):
        for update in chunk:
            if update.revision <= job.replay_floor:
                break
            older.append(update)
        if len(chunk) < _SCAN or chunk[-1].revision <= job.replay_floor:
            break
        if all(any(_replaces_all(c, p) for u in older for c in u.spec.changes) for p in lost):
            break
        beyond = chunk[-1].revision
    desired: tuple[Desired, ...] = ()
    for update in reversed(older):
        desired = with_desired(desired, update)
    refound = tuple(d for d in desired if d.change.parameter in lost)
    return tuple(d for d in kept if d.change.parameter not in lost) + refound


def _due(tx: Transaction, now: datetime) -> list[tuple[str, int]]:
    """(job id, revision) of updates to expire; at most some hundred at once."""
    limit = _SCAN
    while True:
        overdue = tx.overdue(now, limit)
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


def _replaces_all(change: Change, parameter: str) -> bool:
    return change.parameter == parameter and change.group == ""


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
        if submission.request_id:
            check_request_id(submission.request_id)
        request_id = submission.request_id or f"server-{uuid.uuid4().hex}"
        now = self._clock()

        def work(tx: Transaction) -> Update:
            job = need_job(tx, submission.job_id)
            spec = submission.spec
            if submission.request_id:
                existing = tx.update_by_request(job, request_id)
                if existing is not None:
                    return answer_again(existing, spec)
            check_spec(spec, now=now, steps_done=self._telemetry.steps_done(tx, job))
            check_accepts_updates(job)
            check_revision(submission.expected_revision, job.revision)
            check_changes(
                spec.changes,
                job.parameters,
                in_force=self._telemetry.in_force(tx, job),
                principal=submission.author,
                force=spec.force,
            )
            if spec.action is not None:
                check_action(job, spec.action.kind)
            if tx.count_open(job) >= self._max_open:
                raise Refusal(
                    Reason.TOO_MANY_PENDING,
                    f"job {job.id!r} has {self._max_open} updates that are not in force yet, the "
                    "most allowed; wait for some, or cancel some",
                    metadata={"limit": str(self._max_open)},
                    retry_delay=1.0,
                )
            revision = job.revision + 1
            update = Update(job.id, revision, spec, submission.author, request_id, now)
            if submission.validate_only:
                return update
            tx.insert_update(job, update)
            tx.save_job(
                replace(job, revision=revision, desired=with_desired(job.desired, update)).changed(
                    now
                )
            )
            tx.append_event(job_event(EventKind.MODIFIED, job, now, revision))
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
        states: Iterable[UpdateState],
        *,
        newest_first: bool,
        beyond: int | None,
        limit: int,
    ) -> UpdatePage:
        """A page of a job's updates."""
        wanted = tuple(states)

        def work(tx: Transaction) -> UpdatePage:
            found = tx.updates(
                need_job(tx, job_id),
                newest_first=newest_first,
                beyond=beyond,
                limit=limit + 1,
                states=wanted,
            )
            more = len(found) > limit
            found = found[:limit]
            return UpdatePage(tuple(found), found[-1].revision if more else None)

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
            by_whom = Cancelled(by, reason)
            asked = request_cancel(
                update, by_whom, now, trainer_may_have_it=trainer_may_have(job, update)
            )
            if not asked.is_open:
                settle_in(tx, job, update, by_whom, now)
            elif asked != update:
                tx.save_update(job, asked)
                tx.append_event(job_event(EventKind.MODIFIED, job, now, revision))
            return asked

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
            for job_id, revision in due:
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


def job_ended() -> Expired:
    """The outcome of an update that was still open when training reached its end."""
    return Expired(ExpiryCause.JOB_ENDED, "training reached its end before the update was due")


def deadline_passed(update: Update) -> Expired:
    """The outcome of an update that did not reach its trainer in time."""
    when = update.spec.deadline.isoformat() if update.spec.deadline else "unknown"
    return Expired(
        ExpiryCause.DEADLINE, f"the deadline {when} passed before a trainer had the update"
    )
