"""Use case: sessions with trainer agents. One for each job, the newest."""

from __future__ import annotations

import asyncio
import math
import random
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, TypeVar

import structlog

from control_plane.domain.access import EVERYTHING, Scope
from control_plane.domain.errors import Reason, Refusal, shutting_down
from control_plane.domain.job import LIVE_STATES, Job
from control_plane.domain.session import (
    Hello,
    check_protocol,
    fenced,
    superseded,
)
from control_plane.services.admission import Admission, admit, lost
from control_plane.services.agent_session import AgentSession
from control_plane.services.bus import JOBS, updates_topic
from control_plane.services.jobs import job_event
from control_plane.services.joined import JoinedReads, JoinedWrites
from control_plane.services.outbox import (
    GoAway,
    Welcome,
)
from control_plane.services.records import EventKind
from control_plane.services.replicas import Replicas
from control_plane.services.session_parts import SessionLimits, SessionParts

if TYPE_CHECKING:
    from structlog.typing import FilteringBoundLogger

    from control_plane.services.ports import Clock, Store, Transaction, WakeupBus
    from control_plane.services.telemetry import TelemetryHub

T = TypeVar("T")

_CLOCKS_APART = timedelta(seconds=5)
"""How far the clocks of servers that share a store may be apart."""
_AT_ONCE = timedelta()
_FULL_SECONDS = 5.0
_LOOKED_AT_ONCE = 500
_NOT_SERVED = frozenset(
    {
        Reason.SESSION_FENCED,
        Reason.INSTANCE_SUPERSEDED,
        Reason.JOB_DELETED,
        Reason.OUT_OF_SCOPE,
    }
)
"""Of a session that has not heard yet that it is over."""

_log: FilteringBoundLogger = structlog.get_logger(__name__)


class SessionService:
    """Opens sessions, and knows which are open on this server."""

    def __init__(
        self,
        store: Store,
        clock: Clock,
        bus: WakeupBus,
        telemetry: TelemetryHub,
        limits: SessionLimits,
        *,
        everything: Store | None = None,
        scope_now: Callable[[], Scope] = lambda: EVERYTHING,
    ) -> None:
        """Takes its parts.

        Args:
            store: Durable state, as the agent that is being served may see it.
            clock: The time.
            bus: Wakes sessions, watchers and those who wait.
            telemetry: Tells how far jobs have come.
            limits: What agents are told.
            everything: The store as everybody may see it, for what is read and written for several
                agents at once, each its own job; None: `store` is that.
            scope_now: The jobs of the agent that is being served.
        """
        self._store = store
        of_all = everything or store
        self._parts = SessionParts(
            *(of_all, clock, bus, telemetry, limits),
            deliveries=JoinedReads(of_all, _read_ahead),
            writes=JoinedWrites(of_all, _read_ahead, self._written),
            scope_now=scope_now,
        )
        self._open: dict[str, AgentSession] = {}
        self._opening = 0
        self._unrecorded: list[AgentSession] = []
        # Jobs whose Hello may be stored though the store failed; when that was, in steady seconds.
        self._doubtful: dict[str, float] = {}
        self._replicas = Replicas(store, telemetry.steady, limits.lost_after)

    @property
    def limits(self) -> SessionLimits:
        """What agents are told."""
        return self._parts.limits

    @property
    def count(self) -> int:
        """Streams that are open on this server."""
        return len(self._open)

    @property
    def queued(self) -> int:
        """Messages that wait to be sent on them. May be asked from any thread."""
        return sum(len(session.outbox) for session in list(self._open.values()))

    def connected(self, job: Job) -> bool:
        """Whether a job's stream is open, on this server or another that is alive."""
        if job.id in self._open:
            return True
        session = job.session
        return (
            session is not None
            and session.connected
            and self._replicas.may_be_alive(session.replica)
        )

    async def open(self, number: int, hello: Hello) -> AgentSession:
        """Begins a session; an older one of the same job ends.

        Raises:
            Refusal: If the agent must not be served.
        """
        gone = threading.Event()
        opening = asyncio.ensure_future(self._begin(number, hello, gone))
        try:
            return await asyncio.shield(opening)
        except asyncio.CancelledError:
            # It must not fence the session with which its agent comes back.
            gone.set()
            # What is being committed will be, and the job would seem to be connected by it.
            opening.add_done_callback(self._abandon)
            raise

    def _abandon(self, opening: asyncio.Future[AgentSession]) -> None:
        """Has the end of a session recorded that nobody waits for any more."""
        if not opening.cancelled() and opening.exception() is None:
            session = opening.result()
            self._remove(session)
            self._unrecorded.append(session)

    async def _begin(self, number: int, hello: Hello, gone: threading.Event) -> AgentSession:
        if self._is_draining():
            raise shutting_down()
        check_protocol(hello.protocol_version)
        most = self.limits.max_sessions
        if len(self._open) + self._opening >= most and hello.job_id not in self._open:
            raise Refusal(
                Reason.TOO_MANY_SESSIONS,
                f"this server has {most} sessions with agents open, and that is the limit; another"
                " server may have room",
                metadata={"limit": str(most)},
                retry_delay=_FULL_SECONDS,
            )
        now = self._parts.clock()

        def work(tx: Transaction) -> Admission:
            _check_wanted(gone)
            admission = admit(tx, hello, now, self._replicas.own, connected=self.connected)
            # Its job is locked by now: whoever comes back from here on gets a newer epoch.
            _check_wanted(gone)
            return admission

        self._opening += 1
        try:
            admission = await self._store.write(work)
        except Refusal as refusal:
            if refusal.reason is Reason.STORE_UNAVAILABLE:
                self._doubtful[hello.job_id] = self._parts.telemetry.steady()
            raise
        finally:
            self._opening -= 1
        session = AgentSession(self._parts, admission, number)
        older = self._open.get(session.job_id)
        if older is not None and older.epoch > session.epoch:
            raise fenced(session.job_id, session.epoch, older.epoch)
        self._open[session.job_id] = session
        if older is not None:
            same = older.instance_id == session.instance_id
            older.end(
                fenced(session.job_id, older.epoch, session.epoch)
                if same
                else superseded(admission.job)
            )
        self._parts.telemetry.seen(session.job_key)
        self._parts.telemetry.resume(
            *(session.job_key, session.epoch, admission.telemetry),
            is_new_agent=admission.is_new_agent,
        )
        if admission.is_new_run:
            self._parts.telemetry.begin_run(session.job_key, hello.start_step)
        if hello.state.progress is not None:
            self._parts.telemetry.progress(session.job_key, hello.state.progress)
        session.outbox.put(self._welcome(session, admission, now))
        session.begin_deliveries(admission, hello.state.held)
        if self._is_draining():
            session.outbox.put(_go_away())
        self._parts.bus.notify(JOBS)
        self._parts.bus.notify(updates_topic(session.job_id))
        _log.info(
            "session opened",
            job=session.job_id,
            epoch=session.epoch,
            instance=hello.instance_id,
            host=hello.host,
            missing=len(admission.missing),
        )
        return session

    def _welcome(self, session: AgentSession, admission: Admission, now: datetime) -> Welcome:
        limits = self._parts.limits
        return Welcome(
            epoch=session.epoch,
            heartbeat_interval=limits.heartbeat_interval,
            stall_after=limits.stall_after,
            max_message_bytes=limits.max_message_bytes,
            max_samples=limits.max_samples,
            server_time=now,
            settled=tuple((revision, revision) for revision in admission.settled),
        )

    async def close(self, session: AgentSession) -> None:
        """The stream of a session has ended."""
        self._remove(session)
        try:
            await session.close()
        except Refusal as refusal:
            if refusal.reason is not Reason.STORE_UNAVAILABLE:
                raise
            # Else the job would seem to be connected for as long as this server lives.
            self._unrecorded.append(session)
        self._parts.bus.notify(JOBS)
        _log.info("session closed", job=session.job_id, epoch=session.epoch)

    def _remove(self, session: AgentSession) -> None:
        if self._open.get(session.job_id) is session:
            del self._open[session.job_id]

    def _written(self, job_ids: Sequence[str]) -> None:
        """Sessions have written something of their jobs."""
        for job_id in job_ids:
            self._parts.bus.notify(updates_topic(job_id))
        self._parts.bus.notify(JOBS)

    def _is_draining(self) -> bool:
        return self._parts.bus.draining

    async def drain(self) -> None:
        """Asks every agent to go and come back."""
        for session in self._open.values():
            session.outbox.put(_go_away())

    async def beat(self) -> None:
        """Tells other servers that this one is alive, and looks which of them are.

        Raises:
            Refusal: STORE_UNAVAILABLE.
        """
        await self._replicas.beat()

    async def find_lost(self, listened: float) -> None:
        """Marks jobs LOST of which nothing was heard for too long.

        Args:
            listened: For how many seconds this server has listened without a break; before that
                nobody could be heard.
        """
        await self._record_ends()
        limit = self._parts.limits.lost_after
        now = self._parts.telemetry.steady()
        heard_after = now - limit
        for number, session in enumerate(list(self._open.values())):
            if number % _LOOKED_AT_ONCE == 0:
                await asyncio.sleep(0)  # nobody is to wait for a look at ten thousand
            if self._open.get(session.job_id) is not session:
                continue  # its stream has ended meanwhile
            seen = session.last_seen
            if (seen is not None and seen >= heard_after) or session.is_deaf:
                continue
            heard = session.listens_since if seen is None else max(seen, session.listens_since)
            silence = min(now - heard, listened)
            if silence > limit and session.state in LIVE_STATES:
                try:
                    await session.mark_lost(silence)
                except Refusal as refusal:
                    if refusal.reason not in _NOT_SERVED:
                        raise
        if listened <= limit:
            return
        for job in await self._unheard(now - limit):
            if not self._replicas.is_up_to_date:
                return
            await self._end_stream(job, limit, listened)
        await self._replicas.bury()

    async def _unheard(self, doubted_before: float) -> list[Job]:
        """Jobs whose stream no server has open that is alive."""
        alive = self._replicas.alive()
        doubtful = {each: at for each, at in self._doubtful.items() if at < doubted_before}

        def look(tx: Transaction) -> tuple[list[Job], list[Job]]:
            return tx.unheard_jobs(alive), tx.jobs_named(doubtful)

        unheard, named = await self._parts.store.read(look)
        own = [job for job in named if job.id not in self._open and self._has_stream(job)]
        for job_id in doubtful.keys() - {job.id for job in own}:
            if self._doubtful.get(job_id) == doubtful[job_id]:
                del self._doubtful[job_id]
        return unheard + own

    def _has_stream(self, job: Job) -> bool:
        """Whether the store has a job's stream down as open on this server."""
        session = job.session
        return session is not None and session.connected and session.replica == self._replicas.own

    async def forget_silent(self) -> None:
        """Drops what is known in memory of jobs whose streams are elsewhere, or nowhere, by now."""
        await self._parts.telemetry.forget_silent(
            2 * self._parts.limits.lost_after,
            kept=lambda: {each.job_key for each in self._open.values()},
        )

    async def leave(self) -> None:
        """Tells other servers that this one ends, so that they look after its jobs at once.

        Raises:
            Refusal: STORE_UNAVAILABLE; they will see it go silent.
        """
        await self._record_ends()
        await self._replicas.leave()

    async def _record_ends(self) -> None:
        """Stores the ends of streams that could not be stored before."""
        while self._unrecorded:
            session = self._unrecorded[0]
            await session.close()
            self._unrecorded.remove(session)

    def _silence_of(self, job: Job, now: datetime) -> float:
        """Seconds since a job without a stream was heard of; infinite: nobody can tell."""
        live = self._parts.telemetry.current(job)
        heard = [live.last_seen if live is not None else None, self._replicas.since]
        session = job.session
        written = math.inf
        if session is not None:
            alive = self._replicas.heard(session.replica) if session.connected else None
            heard.append(alive)
            if alive is None and session.last_seen_time <= now:  # else a clock was set back since
                written = (now - session.last_seen_time).total_seconds()
        newest = max((each for each in heard if each is not None), default=-math.inf)
        return min(written, self._parts.telemetry.steady() - newest)

    async def _end_stream(self, job: Job, limit: float, listened: float) -> None:
        """Notes that a job has no stream, once it had none for long; a live one is LOST by that."""
        now = self._parts.clock()
        silence = min(listened, self._silence_of(job, now))
        if silence <= limit:
            return
        heard = now - timedelta(seconds=silence)

        def work(tx: Transaction) -> None:
            current = tx.job(job.id)
            if current is None or current.session != job.session or current.state != job.state:
                return
            gone = current
            if current.session is not None and current.session.connected:
                # Its server has died. Nobody has noted what it had sent by then.
                reached = heard + (_CLOCKS_APART if self._parts.store.is_shared else _AT_ONCE)
                # What was accepted later than now was so before a clock was set back.
                sent = [
                    update.revision
                    for update in tx.open_updates(job)
                    if not reached < update.create_time <= now
                ]
                session = replace(
                    current.session, connected=False, last_revision=max(sent, default=0)
                )
                gone = replace(current, session=session)
            if current.state in LIVE_STATES:
                message = f"nothing heard from its agent for {silence:.0f} s"
                gone = lost(gone, message, now, heard, connected=False)
            else:
                gone = gone.changed(now)
            tx.save_job(gone)
            tx.append_event(job_event(EventKind.MODIFIED, current, now))

        await self._parts.store.write(work)
        self._parts.bus.notify(JOBS)


def _check_wanted(gone: threading.Event) -> None:
    """Ends the work of a Hello, and whoever waits for it, once its agent is gone."""
    if gone.is_set():
        raise asyncio.CancelledError


def _read_ahead(tx: Transaction, job_ids: Sequence[str]) -> None:
    tx.read_ahead_open(job_ids)


def _go_away() -> GoAway:
    delay = random.uniform(0.2, 1.0)  # noqa: S311 - spreads reconnects, no secret
    return GoAway(delay, "the server is shutting down")
