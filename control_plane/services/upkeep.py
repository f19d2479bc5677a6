"""What a control plane does by itself: notice silence, expire what is due, forget what is old."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn

import structlog

from control_plane.domain.batch import ENDED
from control_plane.domain.errors import Reason, Refusal
from control_plane.domain.update import OPEN_STATES
from control_plane.services.attention import Attention
from control_plane.services.telemetry import EPOCH

if TYPE_CHECKING:
    from structlog.typing import FilteringBoundLogger

    from control_plane.domain.batch import Batch
    from control_plane.domain.job import Job
    from control_plane.services.jobs import JobService
    from control_plane.services.ports import Clock, Store, Transaction
    from control_plane.services.sessions import SessionService
    from control_plane.services.updates import UpdateService

_log: FilteringBoundLogger = structlog.get_logger(__name__)

_COMMON_DELAY = 0.1
"""Seconds that a busy host makes anybody wait now and then."""
_PRUNE_CHUNK = 5_000
_BATCHES_AT_ONCE = 16
"""Counted in one transaction: of the largest, some 100,000 updates."""
_JOBS_AT_ONCE = 200
_NOT_TO_DELETE = frozenset(
    {Reason.ETAG_MISMATCH, Reason.JOB_HAS_LIVE_SESSION, Reason.JOB_NOT_FOUND}
)
"""Why a job that has ended may be left alone: somebody has to do with it just now."""


@dataclass(frozen=True, slots=True)
class Retention:
    """How long things are kept; None: for ever.

    Attributes:
        samples: Samples of metrics.
        events: The record of changes that watches resume from.
        audit: The record of who changed what.
        tokens: Tokens that are worth nothing any more.
        jobs: Jobs that have finished or failed, since anything of them changed.
        interval: Seconds between two rounds of forgetting.
    """

    samples: timedelta | None
    events: timedelta | None
    audit: timedelta | None = None
    tokens: timedelta | None = None
    jobs: timedelta | None = None
    interval: float = 60.0


class Upkeep:
    """The regular chores."""

    def __init__(
        self,
        store: Store,
        clock: Clock,
        sessions: SessionService,
        updates: UpdateService,
        jobs: JobService,
        retention: Retention,
    ) -> None:
        """Takes its parts."""
        self._store = store
        self._clock = clock
        self._sessions = sessions
        self._updates = updates
        self._jobs = jobs
        self._retention = retention

    def chores(self) -> dict[str, Coroutine[Any, Any, NoReturn]]:
        """What there is to do, by name: each chore goes on until it is cancelled, or fails.

        A store that is away is tried again later. Those that may take long hold up no others: a
        server that does not say in time that it is alive has all of its jobs taken for lost.
        """
        limits = self._sessions.limits
        interval = min(1.0, limits.heartbeat_interval / 2)
        # Half of it: what came shortly before the server was held up was not read either. At the
        # shortest settings that is hardly more than the interval, and on a busy host no look would
        # ever come in time: nobody would be lost. Hold-ups as short as that are blamed on agents.
        allowed = max(limits.lost_after / 2, interval + _COMMON_DELAY)
        attention = Attention(asyncio.get_running_loop().time, allowed)

        async def pay_attention() -> None:
            attention.lasted()

        async def look_after() -> None:
            await self._sessions.find_lost(attention.lasted())
            await self._updates.expire_due()

        return {
            "attention": _repeated(interval, pay_attention),
            "sign of life": _repeated(interval, self._sessions.beat),
            "look for silence": _repeated(interval, look_after),
            "retention": _repeated(self._retention.interval, self._forget),
        }

    async def _forget(self) -> None:
        await self._sessions.forget_silent()
        await self.count_batches()
        await self.forget_jobs()
        await self.prune()

    async def count_batches(self) -> None:
        """Notes of batches that have ended how they did, so that nobody has to count again."""
        after = 0
        while True:

            def look(tx: Transaction, after: int = after) -> tuple[list[Batch], list[Batch]]:
                found = tx.uncounted_batches(after=after, limit=_BATCHES_AT_ONCE)
                counts = tx.batch_counts(found)
                return found, [b for b in found if not OPEN_STATES & counts[b.key].keys()]

            found, ended = await self._store.read(look)
            for batch in ended:
                await self._store.write(partial(_count_ended, batch=batch))
            if len(found) < _BATCHES_AT_ONCE:
                return
            after = found[-1].key

    async def forget_jobs(self) -> None:
        """Deletes jobs that ended longer ago than they are kept, as `midcourse delete` does."""
        kept, after = self._retention.jobs, ""
        while kept is not None:
            now = self._clock()

            def look(tx: Transaction, after: str = after) -> list[Job]:
                return tx.jobs(after=after, limit=_JOBS_AT_ONCE, states=ENDED)

            ended = await self._store.read(look)
            for job in ended:
                if now - job.update_time > kept:
                    await self._delete(job)
            if len(ended) < _JOBS_AT_ONCE:
                return
            after = ended[-1].id

    async def _delete(self, job: Job) -> None:
        try:
            await self._jobs.delete(job.id, job.etag)
        except Refusal as refusal:
            if refusal.reason not in _NOT_TO_DELETE:
                raise
        else:
            _log.info("job deleted", job=job.id, ended=job.update_time.isoformat())

    async def prune(self) -> None:
        """Forgets what is older than the retention, in short transactions."""
        now = self._clock()
        kept = self._retention
        before = None
        if kept.samples is not None:
            before = (now - kept.samples - EPOCH) // timedelta(microseconds=1)
        events_before = now - kept.events if kept.events is not None else None
        await self._repeat(
            lambda tx: tx.prune(
                samples_before=before, events_before=events_before, limit=_PRUNE_CHUNK
            )
        )
        if kept.audit is not None:
            audit_before = now - kept.audit
            await self._repeat(lambda tx: tx.prune_audit_records(audit_before, _PRUNE_CHUNK))
        if kept.tokens is not None:
            tokens_before = now - kept.tokens
            await self._repeat(lambda tx: tx.prune_tokens(tokens_before, _PRUNE_CHUNK))

    async def _repeat(self, delete: Callable[[Transaction], int]) -> None:
        """Deletes bit by bit, as long as there is more."""
        while await self._store.write(delete) >= _PRUNE_CHUNK:
            pass


async def _repeated(interval: float, chore: Callable[[], Awaitable[None]]) -> NoReturn:
    """Does a chore again and again, so many seconds apart."""
    while True:
        await asyncio.sleep(interval)
        try:
            await chore()
        except Refusal as refusal:
            if refusal.reason is not Reason.STORE_UNAVAILABLE:
                raise
            _log.warning("chores wait for the store", error=refusal.message)


def _count_ended(tx: Transaction, batch: Batch) -> None:
    tx.count_ended(batch)
