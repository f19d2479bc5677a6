"""One stream of one agent: what it says is stored, and how its job fares by it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING

import structlog

from control_plane.domain.errors import Reason, Refusal
from control_plane.domain.job import LIVE_STATES, Job, JobState
from control_plane.domain.session import (
    Allowance,
    FullState,
    Heartbeat,
    MessageNumbers,
    Phase,
    TrainerEvent,
    TrainerOutcome,
    state_after,
)
from control_plane.domain.update import Applied, Rejected, Update
from control_plane.services.admission import (
    Admission,
    deliver_in,
    disconnected,
    lost,
    take_outcome,
    take_state,
)
from control_plane.services.deliveries import Deliveries
from control_plane.services.fenced_store import FencedStore
from control_plane.services.jobs import job_event
from control_plane.services.outbox import AckTracker, ItemError, Outbox, StateRequest
from control_plane.services.receipts import Receipts
from control_plane.services.records import EventKind
from control_plane.services.updates import job_ended, settle_in, take_local

if TYPE_CHECKING:
    from structlog.typing import FilteringBoundLogger

    from control_plane.domain.update import LocalUpdate
    from control_plane.services.ports import Transaction
    from control_plane.services.session_parts import SessionParts

LOCAL_UPDATES_AT_ONCE = 20
"""How many changes of its own a training process may tell of at once …"""
SECONDS_PER_LOCAL_UPDATE = 1.0
"""… and how often after that: a guard that never rests must not fill the history."""

ACKNOWLEDGED_WITHIN = 0.3
"""What is stored for many at once is acknowledged after so many seconds: storing comes first."""

_log: FilteringBoundLogger = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Received:
    """The agent has the update."""


@dataclass(frozen=True, slots=True)
class Refused:
    """The agent can not take the update."""

    reason: str
    message: str


ReplyResult = Received | Refused | TrainerOutcome


class AgentSession:
    """One stream of one agent. Everything it stores is fenced by its epoch."""

    __slots__ = (
        "_acks",
        "_live",
        "_local_updates",
        "_numbers",
        "_parts",
        "_run_number",
        "_state",
        "_store",
        "deliveries",
        "ended",
        "outbox",
        "receipts",
    )

    def __init__(self, parts: SessionParts, admission: Admission, hello_number: int) -> None:
        """Is made by `SessionService.open`."""
        self._parts = parts
        self._store = FencedStore(parts, admission)
        self._live = parts.telemetry.of(admission.job.key)
        self._run_number = admission.run.number
        self._state = admission.job.state
        self.outbox = Outbox()
        self.deliveries = Deliveries(
            *(parts, self._store, self.outbox), found_lost=self._found_lost, failed=self._fail
        )
        self.receipts = Receipts(self._store, self._done_soon, self._fail)
        self.ended: asyncio.Future[Refusal] = asyncio.get_running_loop().create_future()
        self._numbers = MessageNumbers(hello_number)
        self._acks = AckTracker(hello_number)
        self._local_updates = Allowance(
            LOCAL_UPDATES_AT_ONCE, SECONDS_PER_LOCAL_UPDATE, parts.clock()
        )

    @property
    def job_id(self) -> str:
        """The job."""
        return self._store.job_id

    @property
    def job_key(self) -> int:
        """The job's key."""
        return self._store.job_key

    @property
    def instance_id(self) -> str:
        """The training process."""
        return self._store.instance_id

    @property
    def epoch(self) -> int:
        """Which of the job's sessions this is."""
        return self._store.epoch

    # What the agent says.

    def begin(self, number: int) -> None:
        """Takes note of a message's number; must be called first, for every message.

        Raises:
            Refusal: If the number was there before.
        """
        gap = self._numbers.accept(number)
        self._acks.begin(number)
        self._live.last_seen = self._parts.telemetry.steady()
        if gap:
            self.outbox.put(StateRequest(f"messages before number {number} are missing"))

    def done(self, number: int, *, awaited: bool = True) -> None:
        """A message needs nothing more; acknowledges as far as possible."""
        if self._acks.done(number, awaited=awaited):
            self.outbox.acknowledge(self._acks.done_up_to)

    def bad_message(self, number: int, reason: Reason, message: str) -> None:
        """Tells the agent that one of its messages was bad; the stream goes on."""
        self.outbox.put(ItemError(number, reason, message))
        self.done(number)

    async def reply(self, number: int, nonce: int, revision: int, result: ReplyResult) -> None:
        """The agent's answer to a delivery."""
        if not self.deliveries.answered(nonce, revision):
            self.bad_message(
                number,
                Reason.PROTOCOL_VIOLATION,
                f"got a reply to nonce {nonce}, revision {revision}: there is no such delivery "
                "without a reply in this stream",
            )
            return
        now = self._parts.clock()
        match result:
            case Received():
                self.receipts.add(revision, number, now)
            case TrainerOutcome():
                await self.outcome(number, result)
            case Refused():
                rejected = Rejected(result.reason, result.message)
                await self._settle(revision, rejected, now)
                self.done(number)

    async def _settle(self, revision: int, rejected: Rejected, now: datetime) -> None:
        def work(tx: Transaction, job: Job) -> None:
            update = tx.update(job, revision)
            if update is not None:
                settle_in(tx, job, update, rejected, now)

        await self._store.write_joined(work)

    async def outcome(self, number: int, outcome: TrainerOutcome) -> None:
        """How an update ended in the trainer."""
        now = self._parts.clock()
        reply, received = self.receipts.take(outcome.revision) or (None, now)

        def work(tx: Transaction, job: Job) -> None:
            take_outcome(tx, job, outcome, now, received)

        await self._store.write_joined(work)
        self._outdate_readings(outcome)
        _log.info(
            "update settled",
            job=self.job_id,
            revision=outcome.revision,
            outcome=type(outcome.result).__name__.lower(),
        )
        self._done_soon(*([] if reply is None else [reply]), number)

    def _done_soon(self, *numbers: int) -> None:
        """What messages told is stored; acknowledges it, later where others wait for more."""
        if self._parts.writes.is_crowded:
            # They wait for theirs to be stored, and this agent only for leave to forget.
            loop = asyncio.get_running_loop()
            loop.call_later(ACKNOWLEDGED_WITHIN, self._all_done, numbers)
        else:
            self._all_done(numbers)

    def _all_done(self, numbers: Iterable[int]) -> None:
        for number in numbers:
            self.done(number)

    async def local_update(self, number: int, local: LocalUpdate) -> None:
        """The training process has changed something by itself; it gets a revision for it."""
        if not self._local_updates.take(self._parts.clock()):
            self.bad_message(
                number,
                Reason.TOO_MANY_PENDING,
                f"got more than {LOCAL_UPDATES_AT_ONCE} changes that the training process has made "
                "by itself at once; send it again in a while",
            )
            return
        now = self._parts.clock()
        update = await self._store.write(lambda tx, job: take_local(tx, job, local, now)[1])
        _log.info("changed by the training process", job=self.job_id, revision=update.revision)
        self.deliveries.send([update])
        self.done(number)

    def _outdate_readings(self, outcome: TrainerOutcome) -> None:
        if isinstance(outcome.result, Applied) and not outcome.rolled_back:
            self._parts.telemetry.applied(self.job_key, outcome.result.transitions)

    def take_at_once(self, number: int, heartbeat: Heartbeat) -> bool:
        """Takes a heartbeat, as `heartbeat` does, where it has nothing to wait for.

        Returns:
            Whether it has; else nothing has been done.
        """
        telemetry = self._parts.telemetry
        if (
            heartbeat.samples > self._parts.limits.max_samples
            or not telemetry.has_room
            or self._is_news(heartbeat.phase)
        ):
            return False
        done = partial(self.done, number, awaited=not heartbeat.patient)
        telemetry.take(self._store.job_key, self._run_number, self._live, heartbeat, done)
        return True

    async def heartbeat(self, number: int, heartbeat: Heartbeat) -> None:
        """Progress and metrics; acknowledged once they are on disk."""
        limit = self._parts.limits.max_samples
        if heartbeat.samples > limit:
            self.bad_message(
                number,
                Reason.PROTOCOL_VIOLATION,
                f"got {heartbeat.samples} samples in a heartbeat, at most {limit}",
            )
            return
        telemetry = self._parts.telemetry
        if not telemetry.has_room:
            with self._store.deaf():
                await telemetry.room()
        done = partial(self.done, number, awaited=not heartbeat.patient)
        telemetry.take(self._store.job_key, self._run_number, self._live, heartbeat, done)
        if self._is_news(heartbeat.phase):
            await self._enter(heartbeat.phase)

    async def event(self, number: int, event: TrainerEvent) -> None:
        """Something happened to the trainer."""
        if event.fault is not None:
            _log.warning(
                "midcourse failed in a training process; training goes on",
                job=self.job_id,
                component=event.fault.component,
                error=event.fault.message,
            )
        if event.phase is not Phase.UNKNOWN or event.message:
            await self._enter(event.phase, event)
        self.done(number)

    async def full_state(self, number: int, state: FullState) -> None:
        """The trainer's state anew: what differs from the store is mended."""
        now = self._parts.clock()

        def work(tx: Transaction, job: Job) -> tuple[tuple[Update, ...], tuple[int, ...]]:
            # The agent may not have read yet what this stream carries to it.
            _, missing, withdraw = take_state(tx, job, state, now, is_being_sent=True)
            return missing, withdraw

        missing, withdraw = await self._store.write(work)
        self.deliveries.holds(state.held)
        if state.progress is not None:
            self._parts.telemetry.progress(self.job_key, state.progress)
        self.deliveries.send_again(missing)
        self.deliveries.withdraw_again(each for each in withdraw if each in self.deliveries.sent)
        self.done(number)

    # What the server says.

    def begin_deliveries(self, admission: Admission, held: Iterable[int]) -> None:
        """Sends what the trainer lacks as the session begins, and asks back what is withdrawn.

        Args:
            admission: What the store says.
            held: Revisions that the trainer has.
        """
        self.deliveries.holds(held)
        self.deliveries.send(admission.missing)
        self.deliveries.withdraw(admission.withdraw)

    def _found_lost(self) -> None:
        # Perhaps another server has found it so; what is heard next shows otherwise.
        self._state = JobState.LOST

    def end(self, refusal: Refusal) -> None:
        """Has the stream end with a refusal."""
        if not self.ended.done():
            self.ended.set_result(refusal)

    def _fail(self, error: BaseException) -> None:
        if isinstance(error, Refusal):
            self.end(error)
        elif not self.ended.done():
            self.ended.set_exception(error)

    # The job's state.

    @property
    def state(self) -> JobState:
        """The job's state as this session last stored it."""
        return self._state

    def _is_news(self, phase: Phase) -> bool:
        """Whether a heartbeat that tells this phase changes the job's state."""
        if phase is Phase.UNKNOWN:
            return self._state is JobState.LOST
        return state_after(self._state, phase) is not self._state

    async def _enter(self, phase: Phase, event: TrainerEvent | None = None) -> None:
        """Has the job follow its trainer, and ends its open updates where it is finished."""
        now = self._parts.clock()

        def work(tx: Transaction, job: Job) -> JobState:
            quiet = phase is Phase.UNKNOWN and job.state is not JobState.LOST
            after = job.state if quiet else state_after(job.state, phase)
            job = replace(
                job,
                state=after,
                state_message=event.message if event is not None else "",
                exit=event.exit if event is not None and event.exit is not None else job.exit,
            ).changed(now)
            tx.save_job(job)
            tx.append_event(job_event(EventKind.MODIFIED, job, now))
            if after is JobState.FINISHED:
                for update in tx.open_updates(job):
                    job = settle_in(tx, job, update, job_ended(update), now)
            return after

        self._state = await self._store.write(work)
        _log.info("job state", job=self.job_id, state=self._state.value)

    async def mark_lost(self, silence: float) -> None:
        """Nothing has been heard for long."""
        now = self._parts.clock()

        def work(tx: Transaction) -> JobState:
            job = self._store.job(tx)
            is_open = job.session is not None and job.session.connected
            if not is_open or job.state not in LIVE_STATES:
                return job.state  # the stream has ended meanwhile, or training has
            seen = now - timedelta(seconds=silence)
            message = f"nothing heard from its agent for {silence:.0f} s"
            tx.save_job(lost(job, message, now, seen, connected=True))
            tx.append_event(job_event(EventKind.MODIFIED, job, now))
            return JobState.LOST

        self._state = await self._parts.store.write(work)
        self._store.notify()

    async def close(self) -> None:
        """The stream has ended: from now on nothing can be on its way to the trainer."""
        self.deliveries.close()
        now = self._parts.clock()
        received = self.receipts.close()

        def work(tx: Transaction) -> None:
            job = tx.job(self.job_id)
            if job is None or job.session is None or job.session.epoch != self.epoch:
                return
            if job.key == self.job_key:
                deliver_in(tx, job, received)
                tx.save_job(disconnected(job, now))
                tx.append_event(job_event(EventKind.MODIFIED, job, now))

        await self._parts.writes.write(self.job_id, work)

    @property
    def last_seen(self) -> float | None:
        """When anything was last heard of the job, in steady seconds; None: not by this server."""
        return self._live.last_seen

    @property
    def is_deaf(self) -> bool:
        """Whether it does not listen at present, so that silence means nothing."""
        return self._store.is_deaf

    @property
    def listens_since(self) -> float:
        """When it last began to listen, in steady seconds; not while it waits for the store."""
        return self._store.listens_since
