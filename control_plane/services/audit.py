"""Use case: the record of who changed what, and of who was refused.

The record of a change is committed together with the change: there is neither without the other.
What is told of other calls, those that were refused, is written right after, many at a time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, TypeVar

import structlog

from control_plane.domain.access import Token
from control_plane.domain.audit import (
    AuditPlace,
    AuditQuery,
    AuditRecord,
    root_of,
    stored,
)
from control_plane.domain.errors import Reason, Refusal
from control_plane.domain.names import batch_name, update_name
from control_plane.domain.update import Update
from control_plane.services.batches import BatchNews
from control_plane.services.passing import PassingStore

if TYPE_CHECKING:
    from structlog.typing import FilteringBoundLogger

    from control_plane.services.ports import Clock, Store, Transaction

T = TypeVar("T")

_log: FilteringBoundLogger = structlog.get_logger(__name__)

_WRITE_SECONDS: Final = 1.0
_RETRY_SECONDS: Final = 5.0
_REPEAT_SECONDS: Final = 60.0
_MOST_WAITING: Final = 10_000
_AT_ONCE: Final = 500
_CHUNK: Final = 500
_MOST_SCANNED: Final = 10_000
_BEGINNING: Final = datetime(1970, 1, 1, tzinfo=UTC)
_END: Final = datetime(9999, 1, 1, tzinfo=UTC)


@dataclass(slots=True)
class Entry:
    """What is to be recorded of the call that is being served.

    Attributes:
        record: As it will be if the change takes effect; without its time.
        is_recorded: It has taken effect, and the record is in the store.
    """

    record: AuditRecord
    is_recorded: bool = False


EntryNow = Callable[[], Entry | None]
"""Tells what is to be recorded of the call that is being served; None: nothing."""


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

        result = await self._store.write(recorded)
        entry.is_recorded = True
        return result


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


@dataclass(slots=True)
class _Repeated:
    """Records that say the same but for their times."""

    last: AuditRecord
    until: float
    count: int = 0


def _what_repeats(record: AuditRecord) -> object:
    """What is the same in records that are told of as one."""
    host = record.peer.rpartition(":")[0]
    why = (host, record.code, record.error_reason)
    # All else that a stranger says is made up as he likes.
    return (record.principal, record.method, record.resource, *why) if record.principal else why


@dataclass(frozen=True, slots=True)
class AuditPage:
    """A page of records; perhaps few or none though there are more beyond `next_beyond`."""

    records: tuple[AuditRecord, ...]
    next_beyond: AuditPlace | None


class AuditLog:
    """Writes down calls that were refused, and lists what was written.

    Attributes:
        dropped: Records that were lost since the start: too many came at once.
    """

    def __init__(self, store: Store, clock: Clock, *, most_waiting: int = _MOST_WAITING) -> None:
        """Takes its parts.

        Args:
            store: Durable state, as everybody may see it.
            clock: The time.
            most_waiting: Records that may wait to be written; more are dropped, and counted.
        """
        self._store = store
        self._clock = clock
        self._most_waiting = most_waiting
        self._waiting: list[AuditRecord] = []
        self._repeated: dict[object, _Repeated] = {}
        self._wanted = asyncio.Event()
        self._writing: asyncio.Task[None] | None = None
        self._told_dropped = 0
        self.dropped = 0

    def refused(self, record: AuditRecord, seconds: float) -> None:
        """Takes down a call that was refused; its time is now.

        A caller who tries the same again and again gets one record at once, and then one a minute
        that tells how often: nobody can fill the disk by knocking.

        Args:
            record: Of the call; its time does not matter.
            seconds: By a clock that never goes back.
        """
        record = stored(replace(record, time=self._clock()))
        same = _what_repeats(record)
        known = self._repeated.get(same)
        if known is not None and seconds < known.until:
            known.last = record
            known.count += 1
            return
        if len(self._waiting) + len(self._repeated) >= self._most_waiting:
            self.dropped += 1
            return
        self._tell_repeated(seconds)
        self._repeated[same] = _Repeated(record, seconds + _REPEAT_SECONDS)
        self._waiting.append(record)
        self._wanted.set()

    def _tell_repeated(self, seconds: float) -> None:
        """Has the records written that tell how often something came again."""
        while self._repeated:
            same, known = next(iter(self._repeated.items()))  # the first to be over
            if known.until > seconds:
                return
            del self._repeated[same]
            if known.count:
                again = f"{known.count} more within a minute"
                summary = "; ".join(part for part in (known.last.summary, again) if part)
                self._waiting.append(stored(replace(known.last, summary=summary)))

    async def run(self) -> None:
        """Writes down what was taken down, within a second or so, until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            try:
                async with asyncio.timeout(_REPEAT_SECONDS):
                    await self._wanted.wait()
                    # Whatever comes meanwhile is written with it.
                    await asyncio.sleep(_WRITE_SECONDS)
            except TimeoutError:
                pass  # those that came again are due
            self._tell_repeated(loop.time())
            try:
                await self.flush()
            except Refusal as refusal:
                if refusal.reason is not Reason.STORE_UNAVAILABLE:
                    raise
                _log.warning("audit records are written later", error=refusal.message)
                self._wanted.set()
                await asyncio.sleep(_RETRY_SECONDS)

    async def close(self) -> None:
        """Writes all that is left."""
        self._tell_repeated(float("inf"))
        await self.flush()

    async def flush(self) -> None:
        """Writes what waits.

        Raises:
            Refusal: STORE_UNAVAILABLE; what is not written then goes on waiting.
        """
        if self._writing is None or self._writing.done():
            self._writing = asyncio.create_task(self._write())
        # Whoever asked for it may go: it is written once.
        await asyncio.shield(self._writing)

    async def _write(self) -> None:
        self._wanted.clear()
        if self.dropped > self._told_dropped:
            lost = self.dropped - self._told_dropped
            _log.error("audit records of refused calls were dropped", records=lost)
            self._told_dropped = self.dropped
        while chunk := self._waiting[:_AT_ONCE]:
            await self._store.write(lambda tx, of=chunk: tx.add_audit_records(of))  # type: ignore[misc]
            del self._waiting[: len(chunk)]

    async def list(self, query: AuditQuery, *, beyond: AuditPlace | None, limit: int) -> AuditPage:
        """A page of records, newest first.

        What has been taken down is written first, so that whoever asks sees it.
        """
        await self.flush()
        begin = beyond or AuditPlace(query.end or _END, -1)
        root = root_of(query.resource)
        is_choosy = query.resource != root or bool(root and query.principal)

        def work(tx: Transaction) -> AuditPage:
            found: list[AuditRecord] = []
            place, scanned = begin, 0
            while True:
                size = _CHUNK if is_choosy else limit - len(found) + 1
                chunk = tx.scan_audit_records(
                    beyond=place,
                    start=query.start or _BEGINNING,
                    principal="" if root else query.principal,
                    root=root,
                    limit=size,
                )
                for record in chunk:
                    if len(found) == limit or scanned == _MOST_SCANNED:
                        return AuditPage(tuple(found), place)
                    place, scanned = record.place, scanned + 1
                    if query.wants(record):
                        found.append(record)
                if len(chunk) < size:
                    return AuditPage(tuple(found), None)

        return await self._store.read(work)
