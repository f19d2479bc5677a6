"""Whether this server can do anything at all, which takes its store."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Final, TypeVar

import structlog

from control_plane.domain.errors import Reason, Refusal
from control_plane.services.passing import PassingStore

if TYPE_CHECKING:
    from structlog.typing import FilteringBoundLogger

    from control_plane.services.ports import Store, Transaction

T = TypeVar("T")

_LOOK_SECONDS: Final = 1.0
_NOBODY: Final = "readiness"

_log: FilteringBoundLogger = structlog.get_logger(__name__)


class WatchedStore(PassingStore):
    """A store that notices when it can not be used.

    What fails is only a suspicion, as one transaction may fail for reasons of its own: then
    a transaction that writes, and leaves nothing, tells.
    """

    def __init__(self, store: Store) -> None:
        """Stands before a store."""
        super().__init__(store)
        self._suspected = asyncio.Event()

    async def write(self, work: Callable[[Transaction], T]) -> T:
        """Runs `work` in a transaction; returns its result after the commit."""
        try:
            return await self._store.write(work)
        except Refusal as refusal:
            self._suspect(refusal)
            raise

    async def read(self, work: Callable[[Transaction], T]) -> T:
        """Runs `work` on a consistent view of what is committed. It must not write."""
        try:
            return await self._store.read(work)
        except Refusal as refusal:
            self._suspect(refusal)
            raise

    async def run(self, tell: Callable[[bool], Awaitable[None]]) -> None:
        """Tells when the store is lost, and when it is there again, until cancelled.

        Args:
            tell: Is called with whether the store is there.
        """
        while True:
            await self._suspected.wait()
            is_lost = False
            while (error := await self._error()) is not None:
                if not is_lost:
                    is_lost = True
                    _log.warning("not ready: the store is away", error=error)
                    await tell(False)
                await asyncio.sleep(_LOOK_SECONDS)
            if is_lost:
                _log.info("ready: the store is there again")
                await tell(True)

    def _suspect(self, refusal: Refusal) -> None:
        if refusal.reason is Reason.STORE_UNAVAILABLE:
            self._suspected.set()

    async def _error(self) -> str | None:
        """Why the store can not be used; None: it can."""

        def work(tx: Transaction) -> None:
            tx.beat(_NOBODY)
            tx.forget_replica(_NOBODY)

        self._suspected.clear()
        try:
            await self._store.write(work)
        except Refusal as refusal:
            return refusal.message
        return None
