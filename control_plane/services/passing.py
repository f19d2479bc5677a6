"""Stores that stand before another one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from control_plane.domain.update import Update
    from control_plane.services.ports import Store, Transaction
    from control_plane.services.records import Event

T = TypeVar("T")

UpdateObserver = Callable[["Update"], None]
"""Is told of every update that was accepted or settled, once that is on disk; must not block."""


class PassingStore:
    """Passes everything on. A `control_plane.services.ports.Store`, to be refined."""

    def __init__(self, store: Store) -> None:
        """Stands before a store."""
        self._store = store
        self.replica = store.replica
        self.is_shared = store.is_shared

    async def write(self, work: Callable[[Transaction], T]) -> T:
        """Runs `work` in a transaction; returns its result after the commit."""
        return await self._store.write(work)

    async def read(self, work: Callable[[Transaction], T]) -> T:
        """Runs `work` on a consistent view of what is committed. It must not write."""
        return await self._store.read(work)

    async def follow(self, heard: Callable[[Sequence[Event] | None], None]) -> None:
        """Tells of what is committed without a caller here who would: runs until cancelled."""
        await self._store.follow(heard)

    async def close(self) -> None:
        """Finishes what was begun and closes the files."""
        await self._store.close()


class ObservedStore(PassingStore):
    """A store that tells of updates that were accepted or settled."""

    def __init__(self, store: Store, observers: Iterable[UpdateObserver]) -> None:
        """Stands before a store, and tells observers."""
        super().__init__(store)
        self._observers = tuple(observers)

    async def write(self, work: Callable[[Transaction], T]) -> T:
        """Runs `work` in a transaction; returns its result after the commit."""
        notes: list[Update] = []

        def noted(tx: Transaction) -> T:
            nonlocal notes
            result = work(tx)
            notes = tx.notes  # of this attempt: what an earlier one did was undone
            return result

        result = await self._store.write(noted)
        for update in notes:
            for observer in self._observers:
                observer(update)
        return result
