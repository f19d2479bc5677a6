"""The store over any SQL database."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from datetime import datetime
from decimal import Decimal
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from analytics_service.chat.conversation import Message, Session
from analytics_service.errors import Reason, Refusal
from analytics_service.names import message_name, session_name
from analytics_service.ports import Clock, NewTurn, SessionChange, SessionCursor, TurnBegun
from analytics_service.store import (
    audit,
    budgets,
    calls,
    recovery,
    retention,
    sessions,
    turns,
    usage,
)
from analytics_service.store.budgets import MissingWindowsError
from analytics_service.store.errors import refusing
from analytics_service.usage.records import (
    Budget,
    BudgetKey,
    UsageFilter,
    UsageGroup,
    UsageRecord,
    UsageSummary,
)
from grpc_runtime.audit.records import AuditPlace, AuditRecord, stored

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from grpc_runtime.audit.log import Entry, EntryNow
    from grpc_runtime.sql import Database

T = TypeVar("T")


def _nothing() -> Entry | None:
    return None


_ATTEMPTS = 8
"""How often a call is begun, at most, while others change the budgets that it falls under."""


class SqlStore:
    """Implements `analytics_service.ports.Store`. To be used from one event loop."""

    def __init__(
        self,
        database: Database,
        clock: Clock,
        entry_now: EntryNow = _nothing,
        noticing: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        """Takes over a database that has the store's tables.

        Args:
            database: To be closed with the store.
            clock: Tells which month is the present one.
            entry_now: Tells what is to be recorded of the call that is being served.
            noticing: Looks at what goes wrong in its block.
        """
        self._database = database
        self._noticing = noticing
        self._clock = clock
        self._entry_now = entry_now

    async def create_session(self, session: Session) -> None:
        """See `Store`."""
        await self._change(
            lambda connection: sessions.create(connection, session),
            lambda _: session_name(session.id),
        )

    async def get_session(self, session_id: str) -> Session | None:
        """See `Store`."""
        return await self._read(lambda connection: sessions.get(connection, session_id))

    async def list_sessions(
        self, principal: str, after: SessionCursor | None, limit: int
    ) -> Sequence[Session]:
        """See `Store`."""
        return await self._read(
            lambda connection: sessions.listing(connection, principal, after, limit)
        )

    async def change_session(
        self, session_id: str, change: SessionChange, now: datetime, version: int | None
    ) -> Session:
        """See `Store`."""
        return await self._change(
            lambda connection: sessions.change(connection, session_id, change, now, version)
        )

    async def delete_session(self, session_id: str, version: int | None) -> None:
        """See `Store`."""
        await self._change(lambda connection: sessions.remove(connection, session_id, version))

    async def list_messages(self, session_id: str, after: int, limit: int) -> Sequence[Message]:
        """See `Store`."""
        return await self._read(
            lambda connection: sessions.next_messages(connection, session_id, after, limit)
        )

    async def last_messages(self, session_id: str, limit: int) -> Sequence[Message]:
        """See `Store`."""
        return await self._read(
            lambda connection: sessions.last_messages(connection, session_id, limit)
        )

    async def get_message(self, session_id: str, number: int | None) -> Message | None:
        """See `Store`."""
        return await self._read(lambda connection: sessions.message(connection, session_id, number))

    async def find_turn(self, principal: str, request_id: str) -> tuple[str, Message] | None:
        """See `Store`."""
        return await self._read(lambda connection: turns.find(connection, principal, request_id))

    async def begin_turn(self, turn: NewTurn, call: UsageRecord | None) -> TurnBegun:
        """See `Store`."""

        async def attempt() -> TurnBegun | None:
            try:
                return await self._change(
                    lambda connection: turns.begin(connection, turn, call), _name_of_answer
                )
            except turns.RepeatedError:
                # None if what it led to was deleted meanwhile: then it is a new one.
                return await self._read(lambda connection: turns.replay(connection, turn))

        return await self._with_windows(attempt, call)

    async def begin_call(self, call: UsageRecord) -> None:
        """See `Store`."""

        def work(connection: Connection) -> bool:
            budgets.guard(connection, alone=False)
            calls.begin(connection, call)
            return True

        await self._with_windows(lambda: self._write(work), call)

    async def end_call(self, call: UsageRecord, answer: Message | None = None) -> None:
        """See `Store`."""
        await self._write(lambda connection: calls.end(connection, call, answer))

    async def end_turn(self, answer: Message) -> Message:
        """See `Store`."""
        return await self._write(lambda connection: turns.end(connection, answer))

    async def request_cancel(self, session_id: str, number: int) -> Message | None:
        """See `Store`."""
        return await self._change(
            lambda connection: sessions.request_cancel(connection, session_id, number)
        )

    async def cancels_requested(self, replica: str) -> Sequence[tuple[str, int]]:
        """See `Store`."""
        return await self._read(lambda connection: sessions.cancels_requested(connection, replica))

    async def beat(self, replica: str, now: datetime) -> None:
        """See `Store`."""
        await self._write(lambda connection: recovery.beat(connection, replica, now))

    async def beats(self) -> Mapping[str, datetime]:
        """See `Store`."""
        return await self._read(recovery.beats)

    async def recover(self, replica: str, silent: Mapping[str, datetime], now: datetime) -> int:
        """See `Store`."""
        return await self._write(
            lambda connection: recovery.recover(connection, replica, silent, now)
        )

    async def list_usage(
        self, which: UsageFilter, before: str | None, limit: int
    ) -> Sequence[UsageRecord]:
        """See `Store`."""
        return await self._read(lambda connection: usage.listing(connection, which, before, limit))

    async def sum_usage(self, which: UsageFilter, group: UsageGroup) -> Sequence[UsageSummary]:
        """See `Store`."""
        return await self._read(lambda connection: usage.summed(connection, which, group))

    async def get_budget(self, key: BudgetKey, now: datetime) -> Budget:
        """See `Store`."""
        return await self._read(lambda connection: budgets.get(connection, key, now))

    async def list_budgets(self, now: datetime) -> Sequence[Budget]:
        """See `Store`."""
        return await self._read(lambda connection: budgets.listing(connection, now))

    async def set_budget(self, key: BudgetKey, limit: Decimal | None, now: datetime) -> Budget:
        """See `Store`."""
        return await self._change(lambda connection: budgets.set_limit(connection, key, limit, now))

    async def prune(
        self, *, sessions_before: datetime | None, usage_before: datetime | None, limit: int
    ) -> int:
        """See `Store`."""
        now = self._clock()
        return await self._write(
            lambda connection: retention.prune(
                connection,
                sessions_before=sessions_before,
                usage_before=usage_before,
                limit=limit,
                now=now,
            )
        )

    async def add_audit_records(self, records: Iterable[AuditRecord]) -> None:
        """See `Store`."""
        await self._write(lambda connection: audit.add(connection, records))

    async def scan_audit_records(
        self,
        *,
        beyond: AuditPlace,
        start: datetime,
        principal: str = "",
        root: str = "",
        limit: int,
    ) -> Sequence[AuditRecord]:
        """See `Store`."""
        return await self._read(
            lambda connection: audit.ROWS.scan(
                connection,
                beyond=beyond,
                start=start,
                principal=principal,
                root=root,
                limit=limit,
            )
        )

    async def prune_audit_records(self, before: datetime, limit: int) -> int:
        """See `Store`."""
        return await self._write(lambda connection: audit.ROWS.prune(connection, before, limit))

    async def close(self) -> None:
        """See `Store`."""
        await self._database.close()

    async def _with_windows(
        self, attempt: Callable[[], Awaitable[T | None]], call: UsageRecord | None
    ) -> T:
        """Attempts to begin a call, and makes the windows of budgets that it lacks."""
        for _ in range(_ATTEMPTS):
            try:
                result = await attempt()
            except MissingWindowsError:
                assert call is not None
                await self._write(partial(budgets.make_windows, call=call))
            else:
                if result is not None:
                    return result
        raise Refusal(
            Reason.STORE_UNAVAILABLE,
            f"{_ATTEMPTS} attempts collided with others who change the same budgets or delete the "
            "same sessions; try again",
            retry_delay=1.0,
        )

    async def _read(self, work: Callable[[Connection], T]) -> T:
        with self._noticing(), refusing():
            return await self._database.read(work)

    async def _write(self, work: Callable[[Connection], T]) -> T:
        with self._noticing(), refusing():
            return await self._database.write(work)

    async def _change(
        self, work: Callable[[Connection], T], name_of: Callable[[T], str] = lambda _: ""
    ) -> T:
        """Makes a change that a caller has asked for, and the record of it, in one transaction.

        Args:
            work: Makes the change.
            name_of: Tells the name of what it has made; empty: the call knows it.
        """
        entry = self._entry_now()
        if entry is None or entry.is_recorded:
            return await self._write(work)
        record = replace(entry.record, time=self._clock())

        def recorded(connection: Connection) -> T:
            result = work(connection)
            name = name_of(result)
            audit.add(connection, [stored(replace(record, resource=name) if name else record)])
            return result

        with entry.being_recorded():
            return await self._write(recorded)


def _name_of_answer(begun: TurnBegun) -> str:
    return message_name(begun.session.id, begun.answer.number)
