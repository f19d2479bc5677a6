"""The record of a change is committed with the change: there is neither without the other."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from datetime import datetime
from typing import TYPE_CHECKING, Any, TypeVar

from control_plane.domain.access import Token
from control_plane.domain.names import batch_name, update_name
from control_plane.domain.update import Update
from control_plane.services.batches import BatchNews
from control_plane.services.passing import PassingStore
from grpc_runtime.audit.records import AuditPlace, AuditRecord, stored

if TYPE_CHECKING:
    from control_plane.services.ports import Clock, Store, Transaction
    from grpc_runtime.audit.log import EntryNow

T = TypeVar("T")


class AuditedStore(PassingStore):
    """A store that keeps the record of a change in the transaction that makes the change.

    It is the first transaction of its call that writes.
    """

    def __init__(self, store: Store, clock: Clock, entry_now: EntryNow) -> None:
        """Stands before a store."""
        super().__init__(store)
        self._clock = clock
        self._entry_now = entry_now

    async def write(self, work: Callable[[Transaction], T]) -> T:
        """Runs `work` in a transaction; returns its result after the commit."""
        entry = self._entry_now()
        if entry is None or entry.is_recorded:
            return await self._store.write(work)
        record = replace(entry.record, time=self._clock())

        def recorded(tx: Transaction) -> T:
            result = work(tx)
            name = _name_of(result)
            tx.add_audit_records([stored(replace(record, resource=name) if name else record)])
            return result

        with entry.being_recorded():
            return await self._store.write(recorded)


def _name_of(result: Any) -> str:
    """The name of what a transaction has made; empty: the call knows it, or there is none."""
    match result:
        case Update():
            return update_name(result.job_id, result.revision)
        case Token():
            return result.name
        case (BatchNews(view=view), _):
            return batch_name(view.batch.key)
        case _:
            return ""


class AuditRecords:
    """The records in a store. A `grpc_runtime.audit.log.AuditStore`."""

    def __init__(self, store: Store) -> None:
        """Takes the store, as everybody may see it."""
        self._store = store

    async def add_audit_records(self, records: Iterable[AuditRecord]) -> None:
        """Stores new records."""
        await self._store.write(lambda tx: tx.add_audit_records(records))

    async def scan_audit_records(
        self,
        *,
        beyond: AuditPlace,
        start: datetime,
        principal: str = "",
        root: str = "",
        limit: int,
    ) -> list[AuditRecord]:
        """Records beyond a place, newest first."""
        return await self._store.read(
            lambda tx: tx.scan_audit_records(
                beyond=beyond, start=start, principal=principal, root=root, limit=limit
            )
        )
