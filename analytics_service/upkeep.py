"""Chores: showing life, settling what dead replicas left, deleting what is old."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

import structlog

from analytics_service.errors import Refusal
from analytics_service.ports import RECOVERY_SILENCE, Clock, Store

_log = structlog.get_logger(__name__)

BEAT_SECONDS = 5.0
PRUNE_EVERY = 120
"""Beats between two prunings."""
PRUNE_ROWS = 500
"""Rows in one transaction, so that none gets long."""


@dataclass(frozen=True, slots=True)
class Retention:
    """How long things are kept; None: for ever.

    Attributes:
        sessions: Sessions, after they were last used.
        usage: Usage records.
        audit: The record of who changed what.
    """

    sessions: timedelta | None
    usage: timedelta | None
    audit: timedelta | None = None


class Upkeep:
    """Runs the chores of one replica."""

    def __init__(
        self,
        store: Store,
        clock: Clock,
        replica: str,
        retention: Retention,
        *,
        is_alone: bool,
        steady: Callable[[], float] = time.monotonic,
    ) -> None:
        """Puts the parts together.

        Args:
            store: Where everything is kept.
            clock: Tells the time.
            replica: Id of this process.
            retention: How long things are kept.
            is_alone: No other process uses the store, so whatever another began is dead.
            steady: What silence is measured by, in seconds.
        """
        self._store = store
        self._clock = clock
        self._replica = replica
        self._retention = retention
        self._is_alone = is_alone
        self._steady = steady
        # The beats of others, and since when each has been the last one of its replica.
        self._since: dict[tuple[str, datetime], float] = {}
        self._looked = steady()
        # When this process last showed life.
        self._shown = float("-inf")
        self._ticks = 0

    async def begin(self) -> None:
        """Shows life for the first time and settles what was left behind.

        Raises:
            Refusal: STORE_UNAVAILABLE.
        """
        await self.beat()
        await self._recover()

    async def beat(self) -> None:
        """Shows life.

        Raises:
            Refusal: STORE_UNAVAILABLE.
        """
        began = self._steady()
        await self._store.beat(self._replica, self._clock())
        self._shown = began

    async def be_known(self) -> None:
        """Shows life where it was not for long; to be called before anything is begun.

        Others may have forgotten a process that could not reach the store, and would take what it
        begins after that for something that a dead one has left.

        Raises:
            Refusal: STORE_UNAVAILABLE.
        """
        if self._steady() - self._shown > RECOVERY_SILENCE.total_seconds() / 2:
            await self.beat()

    async def run(self) -> None:
        """Runs the chores for ever; an unreachable store is tried again."""
        while True:
            await asyncio.sleep(BEAT_SECONDS)
            try:
                await self.tick()
            except Refusal as refusal:
                _log.warning("chores are put off", error=refusal.message)

    async def tick(self) -> None:
        """Shows life, settles what dead replicas left, and now and then deletes what is old.

        Raises:
            Refusal: STORE_UNAVAILABLE.
        """
        try:
            await self.beat()
            await self._recover()
        except Refusal:
            self._since.clear()  # nobody could show life
            raise
        if self._ticks % PRUNE_EVERY == 0:
            await self._prune()
        self._ticks += 1

    async def _recover(self) -> None:
        silent = self._silent(await self._store.beats())
        settled = await self._store.recover(self._replica, silent, self._clock())
        if settled:
            _log.warning("settled what a dead process left", calls_and_answers=settled)

    def _silent(self, beats: Mapping[str, datetime]) -> dict[str, datetime]:
        """The last beats of replicas that are dead.

        Others are watched for whether they beat at all, by this process's own steady clock, and
        only while it can see them.
        """
        others = {replica: beat for replica, beat in beats.items() if replica != self._replica}
        if self._is_alone:
            return others
        now, silence = self._steady(), RECOVERY_SILENCE.total_seconds()
        if now - self._looked > silence / 2:
            self._since.clear()  # the store hung, or this process was held
        self._looked = now
        self._since = {each: self._since.get(each, now) for each in others.items()}
        return {
            replica: beat
            for (replica, beat), since in self._since.items()
            if now - since >= silence
        }

    async def _prune(self) -> None:
        now = self._clock()
        kept = self._retention
        total = 0
        if kept.sessions is not None or kept.usage is not None:
            total += await _repeat(
                lambda: self._store.prune(
                    sessions_before=None if kept.sessions is None else now - kept.sessions,
                    usage_before=None if kept.usage is None else now - kept.usage,
                    limit=PRUNE_ROWS,
                )
            )
        if (audit := kept.audit) is not None:
            total += await _repeat(lambda: self._store.prune_audit_records(now - audit, PRUNE_ROWS))
        if total:
            _log.info("deleted what was old", rows=total)


async def _repeat(delete: Callable[[], Awaitable[int]]) -> int:
    """Deletes bit by bit, as long as there is more; returns how many were deleted."""
    total = deleted = await delete()
    while deleted >= PRUNE_ROWS:
        deleted = await delete()
        total += deleted
    return total
