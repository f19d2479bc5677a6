"""Calls to providers: recorded when they begin, settled when they end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, fields, replace
from datetime import timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from sqlalchemy import bindparam, insert, select, update

from analytics_service.chat.conversation import Message
from analytics_service.store import budgets, sessions
from analytics_service.store.columns import Money
from analytics_service.store.schema import (
    IS_RUNNING_CALL,
    IS_RUNNING_MESSAGE,
    messages,
    usage,
)
from analytics_service.usage.records import CallOutcome, UsageRecord
from analytics_service.usage.tokens import TokenUsage
from grpc_runtime.sql.prepared import Prepared

if TYPE_CHECKING:
    from sqlalchemy import Connection

_TOKENS = tuple(f"{field.name}_tokens" for field in fields(TokenUsage))
_PLAIN = tuple(field.name for field in fields(UsageRecord) if field.name != "tokens")
_SETTLED = frozenset(
    {
        "outcome",
        "error",
        "served_model",
        "cost",
        "unknown_reason",
        "rates",
        "time_to_first_token",
        "duration",
        "estimated_cost",
        "estimated_tokens",
        *_TOKENS,
    }
)
"""What the end of a call changes. What it has reserved, and for whom, is history."""

RECORD = select(*(usage.c[name] for name in (*_PLAIN, *_TOKENS)))
"""The columns of which `record` makes a record."""

_INSERT = Prepared(insert(usage).values({column: bindparam(column.name) for column in usage.c}))
_RUNNING = Prepared(RECORD.where(usage.c.id == bindparam("id"), IS_RUNNING_CALL).with_for_update())
_SETTLE = Prepared(
    update(usage)
    .where(usage.c.id == bindparam("call_id"))
    .values({name: bindparam(name) for name in _SETTLED})
)
_OF_MESSAGE = (
    messages.c.session_id == bindparam("of_session"),
    messages.c.number == bindparam("of_number"),
)
_ADD_COSTS = Prepared(
    update(messages)
    .where(*_OF_MESSAGE)
    .values(
        cost=messages.c.cost + bindparam("added", type_=messages.c.cost.type),
        unknown_cost_calls=messages.c.unknown_cost_calls + bindparam("unknown"),
    )
)
_SAVE_ANSWER = Prepared(
    update(messages)
    .where(*_OF_MESSAGE, IS_RUNNING_MESSAGE)
    .values({name: bindparam(name) for name in ("parts", "model", "citations", "error")})
)


def record(row: Sequence[Any]) -> UsageRecord:
    """The record of a row of `RECORD`."""
    plain = row[: len(_PLAIN)]
    return UsageRecord(
        **dict(zip(_PLAIN, plain, strict=True)), tokens=TokenUsage(*row[len(_PLAIN) :])
    )


def begin(connection: Connection, call: UsageRecord) -> None:
    """Records a running call and reserves for it. Decisions have to be guarded already.

    Raises:
        Refusal: BUDGET_EXCEEDED.
        MissingWindowsError: See `budgets.reserve`.
        sqlalchemy.exc.IntegrityError: If there is a call of this id.
    """
    if call.outcome is not CallOutcome.RUNNING:
        raise ValueError(f"call {call.id} has ended ({call.outcome}), so it can not begin")
    _INSERT.run(connection, **_values(call))
    # Last, as from here on others who spend from the same budgets wait.
    budgets.reserve(connection, call)


def end(connection: Connection, call: UsageRecord, answer: Message | None) -> None:
    """Settles a call that is still running, and saves an answer that is."""
    if call.outcome is CallOutcome.RUNNING:
        raise ValueError(f"call {call.id} is running, so it can not be settled")
    # Locks are taken in this order everywhere: decisions, session, calls, messages, budgets.
    budgets.guard(connection, alone=False)
    held = sessions.hold(connection, call.session_id)
    rows = _RUNNING.rows(connection, id=call.id)
    if rows:
        begun = record(rows[0])
        settle(connection, begun, call)
        if held is not None:
            ended = begun.time + timedelta(seconds=call.duration or 0)
            known, unknown = sums(call)
            sessions.add_costs(connection, held, known, unknown, ended)
    if answer is not None:
        _SAVE_ANSWER.run(
            connection,
            of_session=answer.session_id,
            of_number=answer.number,
            parts=answer.parts,
            model=answer.model,
            citations=answer.citations,
            error=answer.error,
        )


def settle(connection: Connection, begun: UsageRecord, ended: UsageRecord) -> None:
    """Settles a running call that nobody else settles, but for the sums of its session.

    Args:
        connection: In a transaction that keeps others from this call.
        begun: As stored.
        ended: As it ended.
    """
    values = {name: value for name, value in _values(ended).items() if name in _SETTLED}
    _SETTLE.run(connection, call_id=begun.id, **values)
    known, unknown = sums(ended)
    _ADD_COSTS.run(
        connection,
        of_session=begun.session_id,
        of_number=begun.message_number,
        added=known,
        unknown=unknown,
    )
    budgets.settle(connection, begun, replace(ended, reserved=begun.reserved))


def sums(call: UsageRecord) -> tuple[Decimal, int]:
    """What a settled call adds to its message and session: known cost, calls of unknown cost."""
    return (Decimal(0), 1) if call.cost is None else (Money.rounded(call.cost), 0)


def _values(call: UsageRecord) -> dict[str, Any]:
    values = {name: getattr(call, name) for name in _PLAIN}
    return values | dict(zip(_TOKENS, astuple(call.tokens), strict=True))
