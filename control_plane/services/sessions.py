"""Use case: sessions with trainer agents. One for each job, the newest."""

from __future__ import annotations

import random
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, TypeVar

import structlog

from control_plane.domain.errors import Reason, Refusal, shutting_down
from control_plane.domain.job import LIVE_STATES, Job
from control_plane.domain.session import (
    Hello,
    check_protocol,
    fenced,
    superseded,
)
from control_plane.services.admission import Admission, admit, lost
from control_plane.services.agent_session import AgentSession, SessionLimits, SessionParts
from control_plane.services.bus import JOBS, updates_topic
from control_plane.services.jobs import job_event
from control_plane.services.outbox import (
    GoAway,
    Welcome,
)
from control_plane.services.ports import Clock, EventKind, Store, Transaction, WakeupBus

if TYPE_CHECKING:
    from structlog.typing import FilteringBoundLogger

    from control_plane.services.telemetry import TelemetryHub

T = TypeVar("T")

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
    ) -> None:
        """Takes its parts; see `SessionLimits`."""
        self._parts = SessionParts(store, clock, bus, telemetry, limits)
        self._open: dict[str, AgentSession] = {}

    @property
    def limits(self) -> SessionLimits:
        """What agents are told."""
        return self._parts.limits

    def connected(self, job_id: str) -> bool:
        """Whether a job's stream is open on this server."""
        return job_id in self._open

    async def open(self, number: int, hello: Hello) -> AgentSession:
        """Begins a session; an older one of the same job ends.

        Raises:
            Refusal: If the agent must not be served.
        """
        if self._is_draining():
            raise shutting_down()
        check_protocol(hello.protocol_version)
        now = self._parts.clock()
        admission = await self._parts.store.write(lambda tx: admit(tx, hello, now))
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
        self._parts.telemetry.resume(session.job_key, admission.telemetry)
        if admission.is_new_run:
            self._parts.telemetry.begin_run(session.job_key, hello.start_step)
        if hello.state.progress is not None:
            self._parts.telemetry.progress(session.job_key, hello.state.progress)
        session.outbox.put(self._welcome(session, admission, now))
        session.holds(hello.state.held)
        session.send(admission.missing)
        session.withdraw(admission.withdraw)
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
        if self._open.get(session.job_id) is session:
            del self._open[session.job_id]
        await session.close()
        self._parts.bus.notify(JOBS)
        _log.info("session closed", job=session.job_id, epoch=session.epoch)

    def _is_draining(self) -> bool:
        return self._parts.bus.draining

    async def drain(self) -> None:
        """Asks every agent to go and come back."""
        for session in self._open.values():
            session.outbox.put(_go_away())

    async def find_lost(self, since_start: float) -> None:
        """Marks jobs LOST of which nothing was heard for too long.

        Args:
            since_start: Seconds since this server began; before that nobody could be heard.
        """
        limit = self._parts.limits.heartbeat_interval * self._parts.limits.lost_after_intervals
        now = self._parts.clock()
        for session in list(self._open.values()):
            live = self._parts.telemetry.live(session.job_key)
            seen = live.last_seen if live is not None else None
            silence = (now - seen).total_seconds() if seen is not None else since_start
            if silence > limit and session.state in LIVE_STATES:
                try:
                    await session.mark_lost(silence)
                except Refusal as refusal:
                    if refusal.reason not in (Reason.SESSION_FENCED, Reason.JOB_DELETED):
                        raise
        if since_start <= limit:
            return
        jobs = await self._parts.store.read(_live_jobs)
        for job in jobs:
            if job.id not in self._open:
                await self._lose_unconnected(job, limit, now, since_start)

    async def _lose_unconnected(
        self, job: Job, limit: float, now: datetime, since_start: float
    ) -> None:
        live = self._parts.telemetry.live(job.key)
        heard = [now - timedelta(seconds=since_start)]
        heard += [live.last_seen] if live is not None and live.last_seen is not None else []
        heard += [job.session.last_seen_time] if job.session is not None else []
        silence = (now - max(heard)).total_seconds()
        if silence <= limit:
            return

        def work(tx: Transaction) -> None:
            current = tx.job(job.id)
            if current is None or current.session != job.session or current.state != job.state:
                return
            message = f"nothing heard from its agent for {silence:.0f} s"
            tx.save_job(lost(current, message, now, max(heard), connected=False))
            tx.append_event(job_event(EventKind.MODIFIED, current, now))

        await self._parts.store.write(work)
        self._parts.bus.notify(JOBS)


def _go_away() -> GoAway:
    delay = random.uniform(0.2, 1.0)  # noqa: S311 - spreads reconnects, no secret
    return GoAway(delay, "the server is shutting down")


def _live_jobs(tx: Transaction) -> list[Job]:
    found: list[Job] = []
    after = ""
    while chunk := tx.jobs(after=after, limit=500, states=LIVE_STATES):
        found += chunk
        after = chunk[-1].id
    return found
