"""Usage: pages of records, and sums."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date, timedelta
from functools import cache
from typing import TYPE_CHECKING, Any

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Integer,
    Select,
    bindparam,
    case,
    func,
    literal_column,
    select,
    type_coerce,
)

from analytics_service.store import calls
from analytics_service.store.columns import Money
from analytics_service.store.schema import usage
from analytics_service.usage.records import (
    CallOutcome,
    UsageFilter,
    UsageGroup,
    UsageRecord,
    UsageSummary,
)
from analytics_service.usage.tokens import TokenUsage
from grpc_runtime.sql.prepared import Prepared

if TYPE_CHECKING:
    from sqlalchemy import Connection

_FIRST_DAY = date(1970, 1, 1)
_DAY: ColumnElement[int] = type_coerce(usage.c.time, BigInteger) // literal_column(
    str(24 * 60 * 60 * 1_000_000), Integer
)
"""Days since 1970, UTC."""
_KEYS: dict[UsageGroup, ColumnElement[Any]] = {
    UsageGroup.MODEL: usage.c.used_model,
    UsageGroup.PRINCIPAL: usage.c.principal,
    UsageGroup.SESSION: usage.c.session_id,
    UsageGroup.DAY: _DAY,
}
_CONDITIONS: dict[str, ColumnElement[bool]] = {
    "start": usage.c.time >= bindparam("start"),
    "end": usage.c.time < bindparam("end"),
    "model_id": usage.c.used_model == bindparam("model_id"),
    "principal": usage.c.principal == bindparam("principal"),
    "session_id": usage.c.session_id == bindparam("session_id"),
    "before": usage.c.id < bindparam("before"),
}
_ONE: ColumnElement[int] = literal_column("1", Integer)
_NO_COUNT: ColumnElement[int] = literal_column("0", Integer)


def _count(condition: ColumnElement[bool]) -> ColumnElement[int]:
    return func.sum(case((condition, _ONE), else_=_NO_COUNT))


def _sum_money(amount: ColumnElement[Any]) -> ColumnElement[Any]:
    return type_coerce(func.coalesce(func.sum(amount), _NO_COUNT), Money())


_IS_UNKNOWN = usage.c.cost.is_(None)
_SUMS: tuple[ColumnElement[Any], ...] = (
    func.count(),
    _count(usage.c.outcome != literal_column(f"'{CallOutcome.COMPLETED}'")),
    _sum_money(usage.c.cost),
    _count(_IS_UNKNOWN),
    _sum_money(case((_IS_UNKNOWN, usage.c.estimated_cost))),
    func.sum(usage.c.input_tokens),
    func.sum(usage.c.output_tokens),
    func.sum(usage.c.cache_read_tokens),
    func.sum(usage.c.cache_write_tokens),
    func.sum(usage.c.reasoning_tokens),
)


def listing(
    connection: Connection, which: UsageFilter, before: str | None, limit: int
) -> list[UsageRecord]:
    """A page of records, the newest first."""
    values = _values(which)
    if before is not None:
        values["before"] = before
    rows = _page(frozenset(values)).rows(connection, limit=limit, **values)
    return [calls.record(row) for row in rows]


def summed(connection: Connection, which: UsageFilter, group: UsageGroup) -> list[UsageSummary]:
    """Sums by key, in the order of the keys."""
    values = _values(which)
    rows = _sums(frozenset(values), group).rows(connection, **values)
    return [_summary(row, group) for row in rows]


@cache
def _page(given: frozenset[str]) -> Prepared:
    page = _where(calls.RECORD, given).order_by(usage.c.id.desc())
    return Prepared(page.limit(bindparam("limit")))


@cache
def _sums(given: frozenset[str], group: UsageGroup) -> Prepared:
    key = _KEYS.get(group)
    if key is None:
        # One row also where there is nothing to add up, unless it is left out.
        everything = select(literal_column("''"), *_SUMS).select_from(usage)
        return Prepared(_where(everything, given).having(func.count() > _NO_COUNT))
    return Prepared(_where(select(key, *_SUMS), given).group_by(key).order_by(key))


def _where(query: Select[Any], given: frozenset[str]) -> Select[Any]:
    return query.where(*(_CONDITIONS[name] for name in sorted(given)))


def _values(which: UsageFilter) -> dict[str, Any]:
    names = ("start", "end", "model_id", "principal", "session_id")
    return {name: value for name in names if (value := getattr(which, name)) is not None}


def _summary(row: Sequence[Any], group: UsageGroup) -> UsageSummary:
    key, calls_made, unfinished, cost, unknown, estimated, *tokens = row
    if group is UsageGroup.DAY:
        key = (_FIRST_DAY + timedelta(days=int(key))).isoformat()
    return UsageSummary(
        key=key,
        calls=int(calls_made),
        unfinished_calls=int(unfinished),
        # PostgreSQL's sums are Decimals.
        tokens=TokenUsage(*(None if each is None else int(each) for each in tokens)),
        cost=cost,
        unknown_cost_calls=int(unknown),
        estimated_cost=estimated,
    )
