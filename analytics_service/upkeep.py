"""Chores: showing life, settling what dead replicas left, deleting what is old."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from datetime import timedelta

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
    """

    sessions: timedelta | None
    usage: timedelta | None


class Upkeep:
    """Runs the chores of one replica."""

    def __init__(
        self, store: Store, clock: Clock, replica: str, retention: Retention, *, is_alone: bool
    ) -> None:
        """Puts the parts together.

        Args:
            store: Where everything is kept.
            clock: Tells the time.
            replica: Id of this process.
            retention: How long things are kept.
            is_alone: No other process uses the store, so whatever another began is dead.
        """
        self._store = store
        self._clock = clock
        self._replica = replica
        self._retention = retention
        self._is_alone = is_alone

    async def begin(self) -> None:
        """Shows life for the first time and settles what was left behind.

        Raises:
            Refusal: STORE_UNAVAILABLE.
        """
        await self._store.beat(self._replica, self._clock())
        await self._recover()

    async def run(self) -> None:
        """Runs the chores for ever; an unreachable store is tried again."""
        beats = 0
        while True:
            await asyncio.sleep(BEAT_SECONDS)
            try:
                await self._store.beat(self._replica, self._clock())
                await self._recover()
                if beats % PRUNE_EVERY == 0:
                    await self._prune()
                beats += 1
            except Refusal as refusal:
                _log.warning("chores are put off", error=refusal.message)

    async def _recover(self) -> None:
        now = self._clock()
        # A clock that was set back must not spare what is dead, so alone means: any time.
        silent_before = now + timedelta(days=36_500) if self._is_alone else now - RECOVERY_SILENCE
        settled = await self._store.recover(self._replica, silent_before, now)
        if settled:
            _log.warning("settled what a dead process left", calls_and_answers=settled)

    async def _prune(self) -> None:
        now = self._clock()
        sessions, usage = self._retention.sessions, self._retention.usage
        if sessions is None and usage is None:
            return
        deleted = PRUNE_ROWS
        total = 0
        while deleted >= PRUNE_ROWS:
            deleted = await self._store.prune(
                sessions_before=None if sessions is None else now - sessions,
                usage_before=None if usage is None else now - usage,
                limit=PRUNE_ROWS,
            )
            total += deleted
        if total:
            _log.info("deleted what was old", rows=total)
