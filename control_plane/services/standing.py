"""What of a job's updates stands: after one came to nothing, and after a run went back."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import replace
from datetime import datetime
from typing import TYPE_CHECKING

from control_plane.domain.job import Desired, Job, with_desired
from control_plane.domain.roll_back import after_return, is_roll_back
from control_plane.domain.session import contains
from control_plane.domain.update import OPEN_STATES, Update, UpdateState
from control_plane.services.jobs import job_event
from control_plane.services.records import EventKind

if TYPE_CHECKING:
    from control_plane.domain.parameter import Change
    from control_plane.services.ports import Transaction

_SCAN = 100


def desired_anew(tx: Transaction, job: Job, parameters: Collection[str]) -> tuple[Desired, ...]:
    """What is desired, with that of some parameters found out anew: older changes count again."""
    if not parameters:
        return job.desired
    wanted: list[Update] = []
    for update in _newest_first(tx, job, (*OPEN_STATES, UpdateState.APPLIED)):
        if update.is_wanted:
            wanted.append(update)
            if all(
                any(_replaces_all(c, p) for u in wanted for c in u.spec.changes) for p in parameters
            ):
                break
    found: tuple[Desired, ...] = ()
    for update in reversed(wanted):
        found = with_desired(found, update)
    return tuple(d for d in job.desired if d.change.parameter not in parameters) + tuple(
        d for d in found if d.change.parameter in parameters
    )


def origins(
    tx: Transaction, job: Job, in_force: Iterable[tuple[int, int]]
) -> dict[str, tuple[int, int]]:
    """(revision, step) of the newest change of each parameter that was changed, among some."""
    ranges = tuple(in_force)
    found: dict[str, tuple[int, int]] = {}
    for update in _newest_first(tx, job, (UpdateState.APPLIED,)):
        last = update.last_applied
        if last is None or not contains(ranges, update.revision):
            continue
        for name in {t.parameter for t in last.transitions}:
            # What was scheduled may have come later than what was sent after it.
            if last.step > found.get(name, (0, -1))[1]:
                found[name] = (update.revision, last.step)
    return found


def newest_roll_back(tx: Transaction, job: Job, but: Update) -> int | None:
    """Revision of the newest roll back, besides an update, that a trainer was given; None: none."""
    given = (UpdateState.DELIVERED, UpdateState.APPLIED, UpdateState.REJECTED)
    return next(
        (
            update.revision
            for update in _newest_first(tx, job, given)
            if update.revision != but.revision and is_roll_back(update.spec)
        ),
        None,
    )


def reckon(
    tx: Transaction,
    job: Job,
    in_force: Iterable[tuple[int, int]],
    own: Collection[int],
    roll_back: int | None,
    now: datetime,
) -> Job:
    """Notes what a process that begins, or that went back, has left behind.

    Args:
        tx: The transaction.
        job: The job, as the transaction has it.
        in_force: What the process has in force, as it says.
        own: Revisions of what it has changed by itself, and does not know by them yet.
        roll_back: Revision of the roll back that it came from; None: it just goes on.
        now: The time.

    Returns:
        The job as it is then (stored).
    """
    ranges = tuple(in_force)
    touched: set[str] = set()
    for update in list(_newest_first(tx, job, (UpdateState.APPLIED,))):
        stands = contains(ranges, update.revision) or update.revision in own
        after = after_return(update, stands=stands, roll_back=roll_back)
        if after != update:
            tx.save_update(job, after)
            tx.append_event(job_event(EventKind.MODIFIED, job, now, update.revision))
            touched.update(change.parameter for change in update.spec.changes)
    if not touched:
        return job
    job = replace(job, desired=desired_anew(tx, job, touched)).changed(now)
    tx.save_job(job)
    return job


def _newest_first(tx: Transaction, job: Job, states: Iterable[UpdateState]) -> Iterator[Update]:
    """The job's updates of some states, without those of runs that had finished."""
    wanted = tuple(states)
    beyond: int | None = None
    while chunk := tx.updates(job, beyond=beyond, limit=_SCAN, states=wanted):
        for update in chunk:
            if update.revision <= job.replay_floor:
                return
            yield update
        if len(chunk) < _SCAN:
            return
        beyond = chunk[-1].revision


def _replaces_all(change: Change, parameter: str) -> bool:
    return change.parameter == parameter and change.group == ""
