"""Values for tests of the analytics service's store."""

from __future__ import annotations

import re
from contextlib import AbstractContextManager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from itertools import count
from typing import Any

import pytest
from sqlalchemy import Connection

from analytics_service.chat.conversation import (
    Message,
    MessageState,
    ModelChoice,
    ModelSource,
    Role,
    Session,
    TextPart,
)
from analytics_service.errors import Reason, Refusal
from analytics_service.ports import NewTurn, Store, TurnBegun
from analytics_service.store.schema import metadata
from analytics_service.store.store import SqlStore
from analytics_service.usage.records import (
    BudgetKey,
    CallOutcome,
    Period,
    UsageFilter,
    UsageRecord,
)
from analytics_service.usage.tokens import TokenUsage

NOW = datetime(2027, 3, 14, 15, 9, 26, 535897, tzinfo=UTC)
SECOND = timedelta(seconds=1)
DAY = timedelta(days=1)
DOLLAR = Decimal(1)
ALL_DAY = BudgetKey(None, None, Period.DAY)
ALL_MONTH = BudgetKey(None, None, Period.MONTH)

_numbers = count(1)


def session(session_id: str = "s", **fields: Any) -> Session:
    return replace(
        Session(
            id=session_id,
            principal="ann",
            title="Why did it diverge?",
            model_id=None,
            follow_successor=False,
            created=NOW,
            updated=NOW,
        ),
        **fields,
    )


def question(text: str = "Why?", **fields: Any) -> Message:
    return replace(
        Message(
            session_id="",
            number=0,
            role=Role.USER,
            state=MessageState.COMPLETE,
            parts=(TextPart(text),),
            created=NOW,
            ended=NOW,
        ),
        **fields,
    )


def answer(**fields: Any) -> Message:
    return replace(
        Message(
            session_id="",
            number=0,
            role=Role.ASSISTANT,
            state=MessageState.RUNNING,
            parts=(),
            created=NOW,
            ended=None,
            model=ModelChoice("m", ModelSource.REQUEST, "m"),
        ),
        **fields,
    )


def turn(
    of: Session | None = None,
    *,
    is_new: bool = True,
    request_id: str = "",
    fingerprint: str = "f",
    replica: str = "r1",
    at: datetime = NOW,
) -> NewTurn:
    return NewTurn(
        session=of or session(),
        is_new=is_new,
        question=question(created=at, ended=at),
        answer=answer(created=at),
        request_id=request_id,
        fingerprint=fingerprint,
        replica=replica,
    )


async def next_turn(store: Store, **fields: Any) -> NewTurn:
    """A turn in the session as it stands."""
    found = await store.get_session("s")
    assert found is not None
    return turn(found, is_new=False, **fields)


def call(call_id: str | None = None, **fields: Any) -> UsageRecord:
    """A running call that reserves a dollar; ids ascend."""
    return replace(
        UsageRecord(
            id=call_id or f"u{next(_numbers):09}",
            time=NOW,
            principal="ann",
            session_id="s",
            message_number=2,
            requested_model="alias",
            used_model="m",
            provider="p",
            round=0,
            attempt=1,
            replica="r1",
            reserved=DOLLAR,
        ),
        **fields,
    )


def ended(of: UsageRecord, cost: Decimal | str | None = "0.25", **fields: Any) -> UsageRecord:
    """The call at its end; without a cost it is unknown."""
    changes: dict[str, Any] = {
        "outcome": CallOutcome.COMPLETED,
        "tokens": TokenUsage(input=100, output=10),
        "cost": None if cost is None else Decimal(cost),
        "unknown_reason": "" if cost is not None else "no price",
        "duration": 2.5,
    }
    return replace(of, **changes | fields)


async def begin(store: Store, of: NewTurn, first: UsageRecord | None = None) -> TurnBegun:
    return await store.begin_turn(of, first)


async def finish(store: Store, begun: TurnBegun, at: datetime = NOW + SECOND) -> Message:
    return await store.end_turn(replace(begun.answer, state=MessageState.COMPLETE, ended=at))


async def all_usage(store: Store) -> list[UsageRecord]:
    """All records, the newest first."""
    return list(await store.list_usage(UsageFilter(), None, 100_000))


async def one_usage(store: Store, call_id: str) -> UsageRecord:
    [found] = [each for each in await all_usage(store) if each.id == call_id]
    return found


def refused(reason: Reason, words: str) -> AbstractContextManager[object]:
    """Expects a refusal for a reason, whose message has the words."""
    return pytest.raises(
        Refusal,
        match=re.escape(words),
        check=lambda error: error.reason is reason,
    )


async def run_sql(store: Store, *statements: str) -> list[tuple[Any, ...]]:
    """Runs SQL in one transaction of the store's; returns the rows of the last statement."""

    def work(connection: Connection) -> list[tuple[Any, ...]]:
        for statement in statements[:-1]:
            connection.exec_driver_sql(statement)
        last = connection.exec_driver_sql(statements[-1])
        return [tuple(row) for row in last] if last.returns_rows else []

    assert isinstance(store, SqlStore)
    return await store._database.write(work)


async def clear(store: Store) -> None:
    """Empties all tables."""
    names = [table.name for table in reversed(metadata.sorted_tables)]
    await run_sql(store, *(f"DELETE FROM {name}" for name in names))
