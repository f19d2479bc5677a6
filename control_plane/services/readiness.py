"""A store that is watched: whether this server can do anything at all takes it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Final, TypeVar

from control_plane.services.passing import PassingStore

if TYPE_CHECKING:
    from control_plane.services.ports import Store, Transaction

T = TypeVar("T")

_NOBODY: Final = "readiness"


class WatchedStore(PassingStore):
    """A store whose failures somebody looks at."""

    def __init__(self, store: Store, noticing: Callable[[], AbstractContextManager[None]]) -> None:
        """Stands before a store.

        Args:
            store: The store.
            noticing: Looks at what goes wrong in its block.
        """
        super().__init__(store)
        self._noticing = noticing

    async def write(self, work: Callable[[Transaction], T]) -> T:
        """Runs `work` in a transaction; returns its result after the commit."""
        with self._noticing():
            return await self._store.write(work)

    async def read(self, work: Callable[[Transaction], T]) -> T:
        """Runs `work` on a consistent view of what is committed. It must not write."""
        with self._noticing():
            return await self._store.read(work)

    async def attempt(self) -> None:
        """Writes and leaves nothing, and nobody looks at it.

        Raises:
            Refusal: STORE_UNAVAILABLE.
        """

        def work(tx: Transaction) -> None:
            tx.beat(_NOBODY)
            tx.forget_replica(_NOBODY)

        await self._store.write(work)
