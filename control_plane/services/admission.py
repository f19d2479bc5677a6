"""What a Hello leads to: who is served, what is settled by it, what is still to be sent."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import TYPE_CHECKING

import structlog

from control_plane.domain.errors import Reason, Refusal
from control_plane.domain.job import Effective, Job, JobState, SessionInfo
from control_plane.domain.labels import with_agents_labels
from control_plane.domain.roll_back import is_roll_back, went_back
from control_plane.domain.session import (
    FullState,
    Hello,
    Run,
    TrainerOutcome,
    Withdrawn,
    begins_anew,
    check_instance,
    contains,
    state_after,
)
from control_plane.domain.update import (
    Applied,
    Cancelled,
    Expired,
    Outcome,
    Rejected,
    Update,
    UpdateState,
    deliver,
    redelivered,
)
from control_plane.services.jobs import job_event, new_job
from control_plane.services.records import EventKind, Telemetry
from control_plane.services.standing import newest_roll_back, origins, reckon
from control_plane.services.updates import (
    deadline_passed,
    job_ended,
    settle_in,
    take_local,
)

if TYPE_CHECKING:
    from structlog.typing import FilteringBoundLogger

    from control_plane.services.ports import Transaction

_MOST_LOCAL_UPDATES = 100
_HIGHEST_REVISION = 2**53
"""No job is ever given so many updates; beyond it, JSON loses digits."""

_log: FilteringBoundLogger = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Admission:
    """A session as the store has it.

    Attributes:
        job: The job, with the new epoch.
        run: The training process.
        missing: Updates to send, oldest first.
        withdraw: Revisions that the trainer holds and should give back.
        settled: Revisions of the outcomes that came with the Hello.
        is_new_run: Whether the training process is new.
        is_new_agent: Whether the agent process is.
        telemetry: The newest telemetry as stored, or None.
    """

    job: Job
    run: Run
    missing: tuple[Update, ...]
    withdraw: tuple[int, ...]
    settled: tuple[int, ...]
    is_new_run: bool
    is_new_agent: bool
    telemetry: Telemetry | None


def admit(
    tx: Transaction,
    hello: Hello,
    now: datetime,
    replica: str,
    *,
    connected: Callable[[Job], bool],
) -> Admission:
    """Begins a session: fences older ones and settles what the Hello tells.

    Args:
        tx: The transaction.
        hello: What the agent says.
        now: The time.
        replica: The server that it says it to.
        connected: Whether a job's stream is open, to whichever server.

    Raises:
        Refusal: If the agent must not be served.
    """
    job = tx.job(hello.job_id)
    if job is None:
        job = tx.insert_job(new_job(hello.job_id, hello.labels, hello.method, now))
        tx.append_event(job_event(EventKind.CREATED, job, now))
    runs = tx.runs(job)
    check_instance(hello, runs, job, is_open=connected(job))
    run = _run_of(tx, job, hello, runs)
    floor = job.revision if begins_anew(job, hello) else job.replay_floor
    before = job.session
    job = replace(
        job,
        labels=with_agents_labels(job, hello.labels),
        method=hello.method or job.method,
        state=state_after(job.state, hello.state.phase),
        state_message="",
        replay_floor=floor,
        desired=job.desired if floor == job.replay_floor else (),
        exit=None,
        session=SessionInfo(
            epoch=job.session.epoch + 1 if job.session else 1,
            instance_id=hello.instance_id,
            agent_id=hello.agent_id,
            host=hello.host,
            trainer_pid=hello.trainer_pid,
            agent_version=hello.agent_version,
            connect_time=now,
            last_seen_time=now,
            replica=replica,
        ),
    ).changed(now)
    tx.save_job(job)
    tx.append_event(job_event(EventKind.MODIFIED, job, now))
    began_at = None if run in runs else hello.start_step
    job, missing, withdraw = take_state(tx, job, hello.state, now, began_at=began_at)
    return Admission(
        job,
        run,
        missing,
        withdraw,
        settled=tuple(outcome.revision for outcome in hello.state.outcomes),
        is_new_run=run not in runs,
        is_new_agent=before is None or before.agent_id != hello.agent_id,
        telemetry=tx.telemetry(job),
    )


def _run_of(tx: Transaction, job: Job, hello: Hello, runs: Iterable[Run]) -> Run:
    """The training process's run; older processes lose their place to it."""
    number = 0
    mine: Run | None = None
    for run in runs:
        number = max(number, run.number)
        if run.instance_id == hello.instance_id:
            mine = run
        elif not run.superseded:
            tx.save_run(job, replace(run, superseded=True))
    if mine is None:
        mine = Run(number + 1, hello.instance_id, hello.start_step)
        tx.save_run(job, mine)
    return mine


def take_state(
    tx: Transaction,
    job: Job,
    state: FullState,
    now: datetime,
    *,
    is_being_sent: bool = False,
    began_at: int | None = None,
) -> tuple[Job, tuple[Update, ...], tuple[int, ...]]:
    """Brings the store up to what a trainer says of itself.

    Args:
        tx: The transaction.
        job: The job, as the transaction has it.
        state: What the trainer says.
        now: The time.
        is_being_sent: Whether a stream carries updates to the trainer, which may get them without
            having said so: then only what is said of them counts, not what is left unsaid.
        began_at: Optimizer steps done as the trainer began, where this is the first
            that it says; None: it is not.

    Returns:
        The job (stored), updates to send (oldest first), revisions to withdraw.
    """
    job = _number_on(job, state)
    job = replace(
        job,
        parameters=state.parameters,
        actions=state.actions,
        effective=_effective(
            job, state, None if began_at is None else origins(tx, job, state.in_force)
        ),
    )
    tx.save_job(job)
    roll_backs = [u.revision for u in tx.open_updates(job) if went_back(u, state, began_at)]
    for outcome in state.outcomes:
        job = take_outcome(tx, job, outcome, now)
    missing: list[Update] = []
    own: list[int] = []
    for local in state.local_updates[:_MOST_LOCAL_UPDATES]:
        newest = job.revision
        try:
            job, mine = take_local(tx, job, local, now)
        except Refusal as refusal:
            # One that makes no sense must not keep its job from being served.
            _log.warning("a local update was refused", job=job.id, error=refusal.message)
            continue
        own.append(mine.revision)
        if not mine.is_open:
            missing.append(mine)  # the agent keeps it until it sees its revision
        if mine.revision > newest and is_roll_back(mine.spec):
            roll_backs.append(mine.revision)  # the process that goes back leaves it to the next one
    if roll_backs or began_at is not None:
        job = reckon(tx, job, state.in_force, own, max(roll_backs, default=None), now)
    withdraw: list[int] = []
    for update in tx.open_updates(job):
        there = update.revision in state.held
        outcome_now = _resolve(update, job, state, now, maybe=is_being_sent)
        if outcome_now is not None:
            job = settle_in(tx, job, update, outcome_now, now)
            continue
        delivered = deliver(update, now) if there else update
        if delivered != update:
            tx.save_update(job, delivered)
            tx.append_event(job_event(EventKind.MODIFIED, job, now, update.revision))
        if update.cancel_request is not None:
            withdraw.append(update.revision)
        elif not there:
            missing.append(update)
    # A trainer that has reached its end applies nothing any more.
    done = job.state is JobState.FINISHED
    for revision in () if done else tx.applied_above(job, job.replay_floor):
        if not contains(state.in_force, revision) and revision not in state.held:
            update_again = tx.update(job, revision)
            if update_again is not None and redelivered(update_again):
                missing.append(update_again)
    by_revision = {update.revision: update for update in missing}
    return job, tuple(by_revision[each] for each in sorted(by_revision)), tuple(withdraw)


def _number_on(job: Job, state: FullState) -> Job:
    """The job, with revisions that go on after all that its trainer knows.

    A trainer that knows of more than the store does has been steered by a state of the store that
    is gone: a backup was put back, or the job was deleted and made anew. Were its numbers given
    again, it would take new updates for those that it knows, and answer with their outcomes.
    """
    known = state.newest_known
    if known <= job.revision:
        return job
    if known > _HIGHEST_REVISION:
        raise Refusal(
            Reason.PROTOCOL_VIOLATION,
            f"the trainer of job {job.id!r} says that it knows of revision {known}, allowed: at "
            f"most {_HIGHEST_REVISION}",
        )
    _log.warning(
        "the trainer knows of updates that the store does not: it was put back to an older state,"
        " or the job was deleted meanwhile; new updates are numbered after them",
        job=job.id,
        newest_of_store=job.revision,
        newest_of_trainer=known,
    )
    all_settled = job.settled_revision == job.revision
    return replace(
        job, revision=known, settled_revision=known if all_settled else job.settled_revision
    )


def _resolve(
    update: Update, job: Job, state: FullState, now: datetime, *, maybe: bool
) -> Outcome | None:
    """What a trainer's state says of an update that was open until now; None: nothing final.

    `maybe`: the trainer may get it without having said so.
    """
    if update.revision in state.held:
        return None
    if contains(state.in_force, update.revision):
        # In force, but the trainer has no record of the step left.
        return Applied(step=0)
    if job.state is JobState.FINISHED:
        return update.cancel_request or job_ended(update)
    if maybe:
        return None
    if update.cancel_request is not None:
        return update.cancel_request
    if update.spec.deadline is not None and update.spec.deadline <= now:
        return deadline_passed(update)
    return None


def _effective(
    job: Job, state: FullState, origins: Mapping[str, tuple[int, int]] | None
) -> tuple[Effective, ...]:
    """Values in force as declared, with the updates that they are known to come from.

    `origins`: (revision, step) by parameter, where a process begins; None: it goes on, so that what
    is known still holds.
    """
    values: list[Effective] = []
    for spec in state.parameters:
        if spec.unavailable_reason:
            continue
        known = [e for e in job.effective if e.parameter == spec.name]
        standing = [e for e in known if e.revision and contains(state.in_force, e.revision)]
        newest = max(((e.revision, e.step) for e in standing), default=(0, 0))
        origin = newest if origins is None else origins.get(spec.name, (0, 0))
        if standing == known and origin == newest and any(e.group for e in known):
            values += known
        else:
            values.append(Effective(spec.name, "", spec.current_value, *origin))
    return tuple(values)


def deliver_in(tx: Transaction, job: Job, received: Mapping[int, datetime]) -> None:
    """Records that the agent has received updates, by revision when; once for each.

    An unknown revision is left out, as with outcomes.
    """
    for revision, time in received.items():
        update = tx.update(job, revision)
        if update is not None and (delivered := deliver(update, time)) is not update:
            tx.save_update(job, delivered)
            tx.append_event(job_event(EventKind.MODIFIED, job, time, revision))


def take_outcome(
    tx: Transaction,
    job: Job,
    outcome: TrainerOutcome,
    now: datetime,
    received: datetime | None = None,
) -> Job:
    """Records how an update ended in the trainer; an outcome that is known changes nothing.

    An outcome of an unknown revision is left out: a job that was deleted and made anew
    has no use for it.

    Args:
        tx: The transaction.
        job: The job, as the transaction has it.
        outcome: What the trainer says.
        now: The time.
        received: When the agent received the update, where that may not be stored yet.

    Returns:
        The job as it is then (stored).
    """
    update = tx.update(job, outcome.revision)
    if update is None:
        return job
    if update.state is UpdateState.PENDING:
        update = deliver(update, received or now)
    result = _outcome(update, outcome)
    if outcome.rolled_back and isinstance(result, Applied):
        result = replace(result, rolled_back_by=newest_roll_back(tx, job, update))
    return settle_in(tx, job, update, result, now)


def _outcome(update: Update, outcome: TrainerOutcome) -> Applied | Rejected | Expired | Cancelled:
    result = outcome.result
    if isinstance(result, Withdrawn):
        return update.cancel_request or Cancelled("", "given back by the trainer")
    return result


def lost(job: Job, message: str, now: datetime, last_seen: datetime, *, connected: bool) -> Job:
    """A job of which nothing has been heard for long.

    `connected`: its stream is open all the same, so that updates are on their way to it.
    """
    session = job.session
    if session is not None:
        session = replace(session, connected=connected, last_seen_time=last_seen)
    return replace(job, state=JobState.LOST, state_message=message, session=session).changed(now)


def disconnected(job: Job, now: datetime) -> Job:
    """The job once its stream has ended: no newer update was on its way by it."""
    assert job.session is not None
    session = replace(job.session, connected=False, last_revision=job.revision, last_seen_time=now)
    return replace(job, session=session).changed(now)
