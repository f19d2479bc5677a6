"""Writes down calls that were refused, and lists what was written.

The record of a change is committed together with the change, by the service's store: there is
neither without the other. What is told of other calls, those that were refused, is written right
after, many at a time.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Final, Protocol

from grpc_runtime.audit.records import AuditPlace, AuditQuery, AuditRecord, root_of, stored
from grpc_runtime.auth import host_of
from grpc_runtime.logging import get_logger

_log = get_logger(__name__)

_WRITE_SECONDS: Final = 1.0
_RETRY_SECONDS: Final = 5.0
_REPEAT_SECONDS: Final = 60.0
# Of one caller, or of all strangers: within _REPEAT_SECONDS.
_MOST_DIFFERENT: Final = 100
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
        is_recorded: It has taken effect, and the record is in the store; or its caller has gone
            while that was not known yet.
    """

    record: AuditRecord
    is_recorded: bool = False

    @contextlib.contextmanager
    def being_recorded(self) -> Iterator[None]:
        """Notes what becomes of the transaction that the block waits for."""
        try:
            yield
        except asyncio.CancelledError:
            # It may be committed all the same, and another record would contradict the one in it.
            self.is_recorded = True
            raise
        self.is_recorded = True


EntryNow = Callable[[], Entry | None]
"""Tells what is to be recorded of the call that is being served; None: nothing."""


class AuditStore(Protocol):
    """Where the records are. Each method is one transaction."""

    async def add_audit_records(self, records: Iterable[AuditRecord]) -> None:
        """Stores new records."""

    async def scan_audit_records(
        self,
        *,
        beyond: AuditPlace,
        start: datetime,
        principal: str = "",
        root: str = "",
        limit: int,
    ) -> Sequence[AuditRecord]:
        """Returns records beyond a place, newest first.

        Args:
            beyond: The place.
            start: The oldest time.
            principal: Only of this one; empty: of all.
            root: Only about what belongs to this (see :func:`root_of`); empty: whatever. Only one
                of the two.
            limit: How many.
        """


@dataclass(slots=True)
class _Repeated:
    """Records that say the same but for their times, or that are told of as one all the same."""

    last: AuditRecord
    until: float
    count: int = 0

    def summary(self, *, same: bool) -> AuditRecord:
        """What is recorded of those that came after the first, all of which say the same or not."""
        others = "" if same else ", not all about this,"
        again = f"{self.count} more{others} within a minute"
        summary = "; ".join(part for part in (self.last.summary, again) if part)
        return stored(replace(self.last, summary=summary))


def _what_repeats(record: AuditRecord) -> tuple[str, ...]:
    """What is the same in records that are told of as one."""
    why = (host_of(record.peer), record.code, record.error_reason)
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

    def __init__(
        self,
        store: AuditStore,
        clock: Callable[[], datetime],
        is_away: Callable[[Exception], bool],
        *,
        most_waiting: int = _MOST_WAITING,
    ) -> None:
        """Takes its parts.

        Args:
            store: Where the records are.
            clock: The time.
            is_away: Tells whether an exception means that the store can not be used now.
            most_waiting: Records that may wait to be written; more are dropped, and counted.
        """
        self._store = store
        self._clock = clock
        self._is_away = is_away
        self._most_waiting = most_waiting
        self._waiting: list[AuditRecord] = []
        self._repeated: dict[str | tuple[str, ...], _Repeated] = {}
        self._different: Counter[str] = Counter()
        self._wanted = asyncio.Event()
        self._writing: asyncio.Task[None] | None = None
        self._told_dropped = 0
        self.dropped = 0

    def refused(self, record: AuditRecord, seconds: float) -> None:
        """Takes down a call that was refused; its time is now.

        A caller who tries the same again and again gets one record at once, and then one a minute
        that tells how often; so does one who has tried too many different things: nobody can fill
        the disk by knocking, or keep out what there is to record of others.

        Args:
            record: Of the call; its time does not matter.
            seconds: By a clock that never goes back.
        """
        record = stored(replace(record, time=self._clock()))
        self._tell_repeated(seconds)
        same: str | tuple[str, ...] = _what_repeats(record)
        if same not in self._repeated and self._different[record.principal] >= _MOST_DIFFERENT:
            same = record.principal  # with all the rest of that one
        known = self._repeated.get(same)
        if known is not None:
            known.last = record
            known.count += 1
            return
        if len(self._waiting) + len(self._repeated) >= self._most_waiting:
            self.dropped += 1
            return
        self._repeated[same] = _Repeated(record, seconds + _REPEAT_SECONDS)
        self._different[record.principal] += 1
        self._waiting.append(record)
        self._wanted.set()

    def _tell_repeated(self, seconds: float) -> None:
        """Has the records written that tell how often something came again."""
        while self._repeated:
            same, known = next(iter(self._repeated.items()))  # the first to be over
            if known.until > seconds:
                return
            del self._repeated[same]
            principal = known.last.principal
            self._different[principal] -= 1
            if not self._different[principal]:
                del self._different[principal]
            if known.count:
                self._waiting.append(known.summary(same=not isinstance(same, str)))

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
            except Exception as error:
                if not self._is_away(error):
                    raise
                _log.warning("audit records are written later", error=str(error))
                self._wanted.set()
                await asyncio.sleep(_RETRY_SECONDS)

    async def close(self) -> None:
        """Writes all that is left."""
        self._tell_repeated(float("inf"))
        await self.flush()

    async def flush(self) -> None:
        """Writes what waits.

        Raises:
            Exception: The store is away; what is not written then goes on waiting.
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
            await self._store.add_audit_records(chunk)
            del self._waiting[: len(chunk)]

    async def list(self, query: AuditQuery, *, beyond: AuditPlace | None, limit: int) -> AuditPage:
        """A page of records, newest first.

        What has been taken down is written first, so that whoever asks sees it.
        """
        await self.flush()
        begin = beyond or AuditPlace(query.end or _END, -1)
        root = root_of(query.resource)
        is_choosy = query.resource != root or bool(root and query.principal)

        found: list[AuditRecord] = []
        place, scanned = begin, 0
        while True:
            size = _CHUNK if is_choosy else limit - len(found) + 1
            chunk = await self._store.scan_audit_records(
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
