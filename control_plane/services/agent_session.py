"""One stream of one agent: what it says is stored, what is accepted for its job is sent."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
from collections.abc import Awaitable, Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, TypeVar

import structlog

from control_plane.domain.errors import Reason, Refusal
from control_plane.domain.job import Job, JobState
from control_plane.domain.session import (
    Allowance,
    FullState,
    Heartbeat,
    MessageNumbers,
    Phase,
    TrainerEvent,
    TrainerOutcome,
    fenced,
    state_after,
    superseded,
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
from control_plane.services.bus import JOBS, session_topic, updates_topic
from control_plane.services.jobs import job_event
from control_plane.services.outbox import (
    AckTracker,
    Delivery,
    ItemError,
    Outbox,
    StateRequest,
    Withdrawal,
)
from control_plane.services.ports import Clock, EventKind, Store, Transaction, WakeupBus
from control_plane.services.updates import job_ended, settle_in, take_local

if TYPE_CHECKING:
    from structlog.typing import FilteringBoundLogger

    from control_plane.domain.update import LocalUpdate
    from control_plane.services.joined import JoinedReads, JoinedWrites
    from control_plane.services.telemetry import TelemetryHub

T = TypeVar("T")

LOCAL_UPDATES_AT_ONCE = 20
"""How many changes of its own a training process may tell of at once …"""
SECONDS_PER_LOCAL_UPDATE = 1.0
"""… and how often after that: a guard that never rests must not fill the history."""

RECEIPT_SECONDS = 0.05
"""What an agent has received is stored after so long, unless it is settled by then."""

_FIRST_RETRY_SECONDS = 0.1
_LONGEST_RETRY_SECONDS = 2.0

_log: FilteringBoundLogger = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class SessionLimits:
    """What agents are told; durations in seconds.

    Attributes:
        heartbeat_interval: How often they speak.
        lost_after_intervals: Silence for so many intervals makes a job LOST.
        stall_after: Least time without a step after which a trainer counts as stalled.
        max_message_bytes: Largest message.
        max_samples: Most samples in a heartbeat.
        max_sessions: Most sessions on this server.
    """

    heartbeat_interval: float = 5.0
    lost_after_intervals: float = 3.0
    stall_after: float = 30.0
    max_message_bytes: int = 4 * 1024 * 1024
    max_samples: int = 10_000
    max_sessions: int = 20_000

    @property
    def lost_after(self) -> float:
        """Seconds of silence that make a job LOST."""
        return self.heartbeat_interval * self.lost_after_intervals


@dataclass(frozen=True, slots=True)
class SessionParts:
    """What every session works with."""

    store: Store
    clock: Clock
    bus: WakeupBus
    telemetry: TelemetryHub
    limits: SessionLimits
    deliveries: JoinedReads[str]
    writes: JoinedWrites[str]


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

    def __init__(self, parts: SessionParts, admission: Admission, hello_number: int) -> None:
        """Is made by `SessionService.open`."""
        self._parts = parts
        self._run = admission.run
        self.job_id = admission.job.id
        self.job_key = admission.job.key
        self.instance_id = admission.run.instance_id
        self.epoch = admission.job.session.epoch if admission.job.session else 0
        self.outbox = Outbox()
        self.ended: asyncio.Future[Refusal] = asyncio.get_running_loop().create_future()
        self._state = admission.job.state
        self._closed = False
        self._waiting = 0
        self.listens_since = parts.clock()
        """When it last began to listen; not while it waits for the store."""
        self._numbers = MessageNumbers(hello_number)
        self._acks = AckTracker(hello_number)
        self._nonces: dict[int, int] = {}
        self._new_nonce = itertools.count(random.getrandbits(32) << 16)
        # Received, and not yet stored as such: by revision, the reply's number, and when it came.
        self._receipts: dict[int, tuple[int, datetime]] = {}
        self._receipts_due: asyncio.TimerHandle | None = None
        self._sent: set[int] = set()
        self._withdrawn: set[int] = set()
        self._local_updates = Allowance(
            LOCAL_UPDATES_AT_ONCE, SECONDS_PER_LOCAL_UPDATE, parts.clock()
        )

    # What the agent says.

    def begin(self, number: int) -> None:
        """Takes note of a message's number; must be called first, for every message.

        Raises:
            Refusal: If the number was there before.
        """
        gap = self._numbers.accept(number)
        self._acks.begin(number)
        self._parts.telemetry.seen(self.job_key)
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
        if self._nonces.get(nonce) != revision:
            self.bad_message(
                number,
                Reason.PROTOCOL_VIOLATION,
                f"got a reply to nonce {nonce}, revision {revision}: there is no such delivery "
                "without a reply in this stream",
            )
            return
        del self._nonces[nonce]
        now = self._parts.clock()
        match result:
            case Received():
                self._receipts[revision] = number, now
                self._store_receipts_within(RECEIPT_SECONDS)
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

        await self._write_joined(work)

    def _store_receipts_within(self, seconds: float) -> None:
        if self._receipts_due is None and not self._closed:
            loop = asyncio.get_running_loop()
            self._receipts_due = loop.call_later(seconds, self._store_receipts, seconds)

    def _store_receipts(self, waited: float) -> None:
        """Has it stored that updates were received, together with what others have to store."""
        self._receipts_due = None
        receipts, self._receipts = self._receipts, {}
        if receipts:
            asked = self._parts.writes.ask(
                self.job_id, lambda tx: deliver_in(tx, self._fenced_job(tx), _times(receipts))
            )
            asked.add_done_callback(partial(self._receipts_stored, receipts, waited))

    def _receipts_stored(
        self,
        receipts: dict[int, tuple[int, datetime]],
        waited: float,
        asked: asyncio.Future[None],
    ) -> None:
        error = asked.exception()
        if error is None:
            for number, _ in receipts.values():
                self.done(number)
        elif not isinstance(error, Refusal):
            if not self.ended.done():
                self.ended.set_exception(error)
        elif error.reason is Reason.STORE_UNAVAILABLE:
            self._receipts = receipts | self._receipts
            self._store_receipts_within(min(2 * waited, _LONGEST_RETRY_SECONDS))
        else:
            self.end(error)

    async def outcome(self, number: int, outcome: TrainerOutcome) -> None:
        """How an update ended in the trainer."""
        now = self._parts.clock()
        reply, received = self._receipts.pop(outcome.revision, (None, now))

        def work(tx: Transaction, job: Job) -> None:
            take_outcome(tx, job, outcome, now, received)

        await self._write_joined(work)
        if reply is not None:
            self.done(reply)
        self._outdate_readings(outcome)
        _log.info(
            "update settled",
            job=self.job_id,
            revision=outcome.revision,
            outcome=type(outcome.result).__name__.lower(),
        )
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
        update = await self._write(lambda tx: take_local(tx, self._fenced_job(tx), local, now)[1])
        _log.info("changed by the training process", job=self.job_id, revision=update.revision)
        self.send([update])
        self.done(number)

    def _outdate_readings(self, outcome: TrainerOutcome) -> None:
        if isinstance(outcome.result, Applied) and not outcome.rolled_back:
            self._parts.telemetry.applied(self.job_key, outcome.result.transitions)

    async def heartbeat(self, number: int, heartbeat: Heartbeat) -> None:
        """Progress and metrics; acknowledged once they are on disk."""
        samples = sum(len(column.steps) for column in heartbeat.metrics)
        limit = self._parts.limits.max_samples
        if samples > limit:
            self.bad_message(
                number,
                Reason.PROTOCOL_VIOLATION,
                f"got {samples} samples in a heartbeat, at most {limit}",
            )
            return
        with self._deaf():
            await self._parts.telemetry.room()
        self._parts.telemetry.take(
            self.job_key,
            self._run.number,
            heartbeat,
            lambda: self.done(number, awaited=not heartbeat.patient),
        )
        if heartbeat.phase is not Phase.UNKNOWN or self._state is JobState.LOST:
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
        # The agent may not have read yet what this stream has carried.
        on_its_way = frozenset(self._sent)

        def work(tx: Transaction) -> tuple[tuple[Update, ...], tuple[int, ...]]:
            _, missing, withdraw = take_state(tx, self._fenced_job(tx), state, now, on_its_way)
            return missing, withdraw

        missing, withdraw = await self._write(work)
        self.holds(state.held)
        if state.progress is not None:
            self._parts.telemetry.progress(self.job_key, state.progress)
        self._sent -= {update.revision for update in missing}
        self.send(missing)
        self._withdrawn -= set(withdraw)
        self.withdraw(withdraw)
        self.done(number)

    # What the server says.

    def holds(self, revisions: Iterable[int]) -> None:
        """Notes what the trainer has already: it need not be sent, and only it can give it back."""
        self._sent.update(revisions)

    def send(self, updates: Iterable[Update]) -> None:
        """Sends updates that this stream has not carried yet."""
        now = self._parts.clock()
        for update in updates:
            if update.revision in self._sent:
                if update.cancel_request is not None:
                    self.withdraw([update.revision])
                continue
            self._sent.add(update.revision)
            nonce = next(self._new_nonce)
            self._nonces[nonce] = update.revision
            left = None
            if update.spec.deadline is not None and update.is_open:
                left = max(0.0, (update.spec.deadline - now).total_seconds())
            self.outbox.put(Delivery(nonce, update, left))

    def withdraw(self, revisions: Iterable[int]) -> None:
        """Asks the trainer to give updates back."""
        for revision in revisions:
            if revision not in self._withdrawn:
                self._withdrawn.add(revision)
                self.outbox.put(Withdrawal(revision))

    async def deliver_new(self) -> None:
        """Sends what is accepted, whenever there is something, until cancelled.

        An update that is withdrawn before it was sent is settled here: nobody else
        knows that the trainer has not got it.
        """
        subscription = self._parts.bus.subscribe(session_topic(self.job_id))
        try:
            while True:
                try:
                    updates = await self._patiently(
                        lambda: self._parts.deliveries.read(self.job_id, self._open_updates)
                    )
                except Refusal as refusal:
                    self.end(refusal)
                    return
                if updates is None:
                    await self._take_back()
                    continue
                unsent = [u for u in updates if u.cancel_request and u.revision not in self._sent]
                if unsent:
                    await self._settle_unsent(unsent)
                self.send(u for u in updates if u not in unsent)
                await subscription.wait()
        finally:
            subscription.close()

    def _open_updates(self, tx: Transaction) -> list[Update] | None:
        """What is accepted and not settled; None: another server took this one for dead.

        Raises:
            Refusal: If this session is not served any more.
        """
        job = self._fenced_job(tx)
        if job.state is JobState.LOST:
            # Perhaps another server has found it so; what is heard next shows otherwise.
            self._state = job.state
        return tx.open_updates(job) if job.session and job.session.connected else None

    async def _take_back(self) -> None:
        """Notes that the stream is open after all: only then may anything be sent by it."""
        now = self._parts.clock()

        def work(tx: Transaction) -> None:
            job = self._fenced_job(tx)
            if job.session is not None:
                session = replace(job.session, connected=True, last_revision=0)
                tx.save_job(replace(job, session=session).changed(now))
                tx.append_event(job_event(EventKind.MODIFIED, job, now))

        await self._write(work)

    async def _settle_unsent(self, updates: list[Update]) -> None:
        now = self._parts.clock()

        def work(tx: Transaction) -> None:
            job = self._fenced_job(tx)
            for stale in updates:
                update = tx.update(job, stale.revision)
                if update is not None and update.is_open and update.cancel_request is not None:
                    job = settle_in(tx, job, update, update.cancel_request, now)

        await self._write(work)

    def end(self, refusal: Refusal) -> None:
        """Has the stream end with a refusal."""
        if not self.ended.done():
            self.ended.set_result(refusal)

    # The job's state.

    @property
    def state(self) -> JobState:
        """The job's state as this session last stored it."""
        return self._state

    async def _enter(self, phase: Phase, event: TrainerEvent | None = None) -> None:
        """Has the job follow its trainer, and ends its open updates where it is finished."""
        if event is None and state_after(self._state, phase) is self._state:
            return
        now = self._parts.clock()

        def work(tx: Transaction) -> JobState:
            job = self._fenced_job(tx)
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

        self._state = await self._write(work)
        _log.info("job state", job=self.job_id, state=self._state.value)

    async def mark_lost(self, silence: float) -> None:
        """Nothing has been heard for long."""
        now = self._parts.clock()

        def work(tx: Transaction) -> None:
            job = self._fenced_job(tx)
            seen = now - timedelta(seconds=silence)
            message = f"nothing heard from its agent for {silence:.0f} s"
            tx.save_job(lost(job, message, now, seen, connected=True))
            tx.append_event(job_event(EventKind.MODIFIED, job, now))

        await self._parts.store.write(work)
        self._notify()
        self._state = JobState.LOST

    async def close(self) -> None:
        """The stream has ended: from now on nothing can be on its way to the trainer."""
        now = self._parts.clock()
        self._closed = True
        if self._receipts_due is not None:
            self._receipts_due.cancel()

        def work(tx: Transaction) -> None:
            job = tx.job(self.job_id)
            if job is None or job.session is None or job.session.epoch != self.epoch:
                return
            if job.key == self.job_key:
                deliver_in(tx, job, _times(self._receipts))
                tx.save_job(disconnected(job, now))
                tx.append_event(job_event(EventKind.MODIFIED, job, now))

        await self._parts.writes.write(self.job_id, work)

    def _fenced_job(self, tx: Transaction) -> Job:
        """The job, if this session is still the one that is served.

        Raises:
            Refusal: SESSION_FENCED, INSTANCE_SUPERSEDED or JOB_DELETED.
        """
        job = tx.job(self.job_id)
        if job is None or job.key != self.job_key:
            raise _deleted(self.job_id)
        session = job.session
        if session is not None and session.instance_id != self.instance_id:
            raise superseded(job)
        if session is None or session.epoch != self.epoch:
            raise fenced(self.job_id, self.epoch, session.epoch if session else 0)
        return job

    @property
    def is_deaf(self) -> bool:
        """Whether it does not listen at present, so that silence means nothing."""
        return self._waiting > 0

    @contextlib.contextmanager
    def _deaf(self) -> Iterator[None]:
        self._waiting += 1
        try:
            yield
        finally:
            self._waiting -= 1
            self.listens_since = self._parts.clock()

    async def _patiently(self, call: Callable[[], Awaitable[T]]) -> T:
        """The result of a call that may be made again, once the store is there.

        The stream stays meanwhile; what the agent says then waits in the stream, and in
        the agent, both of which are bounded.
        """
        try:
            return await call()
        except Refusal as refusal:
            if refusal.reason is not Reason.STORE_UNAVAILABLE:
                raise
            _log.warning("a session waits for the store", job=self.job_id, error=refusal.message)
        with self._deaf():
            bound = _FIRST_RETRY_SECONDS
            while True:
                await asyncio.sleep(random.uniform(0.5, 1) * bound)  # noqa: S311 - spreads the load, no secret
                bound = min(2 * bound, _LONGEST_RETRY_SECONDS)
                try:
                    return await call()
                except Refusal as refusal:
                    if refusal.reason is not Reason.STORE_UNAVAILABLE:
                        raise

    async def _write_joined(self, work: Callable[[Transaction, Job], T]) -> T:
        """Like `_write`, of the job, together with what other sessions write at the same time."""
        return await self._patiently(
            lambda: self._parts.writes.write(self.job_id, lambda tx: work(tx, self._fenced_job(tx)))
        )

    async def _write(self, work: Callable[[Transaction], T]) -> T:
        result = await self._patiently(lambda: self._parts.store.write(work))
        self._notify()
        return result

    def _notify(self) -> None:
        self._parts.bus.notify(updates_topic(self.job_id))
        self._parts.bus.notify(JOBS)


def _times(receipts: dict[int, tuple[int, datetime]]) -> dict[int, datetime]:
    return {revision: time for revision, (_, time) in receipts.items()}


def _deleted(job_id: str) -> Refusal:
    return Refusal(Reason.JOB_DELETED, f"job {job_id!r} was deleted by an operator")
