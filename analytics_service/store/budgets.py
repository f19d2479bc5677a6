"""What may be spent, kept however many calls and replicas there are.

A budget with a limit has a counter for each span of time in which it was looked at: its
window. Calls that begin and end change the windows that they fall under, in the
transaction that records them, so a window always equals the sum over the usage of its
span. Where a window is missing it is made by just that sum, while nobody begins or ends a
call; so a limit counts what was spent before it was set.

PostgreSQL runs transactions side by side, so there

- whoever begins or ends a call shares a lock, which whoever makes a window or changes a
  limit takes alone (`guard`). It is taken before any other lock.
- the windows that a call falls under are locked in the order of their keys, so that of
  two calls the later one sees what the earlier one has reserved, and neither waits for
  the other in a circle.

SQLite has one writer at a time and needs neither.
"""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal
from functools import cache
from typing import TYPE_CHECKING, Any

from sqlalchemy import (
    Case,
    ColumnElement,
    bindparam,
    case,
    delete,
    func,
    insert,
    literal_column,
    select,
    type_coerce,
    update,
)

from analytics_service.errors import Reason, Refusal, invalid
from analytics_service.store.columns import Money, OrAll
from analytics_service.store.schema import IS_RUNNING_CALL, budgets, usage, windows
from analytics_service.usage.budgets import fits, span
from analytics_service.usage.records import Budget, BudgetKey, Period, UsageRecord
from grpc_runtime.sql.prepared import Prepared, execute

if TYPE_CHECKING:
    from sqlalchemy import Connection

_DECISIONS = 0x6D_69_64_62_75_64_67_74
"""Any number: advisory locks count within one database, which belongs to one service."""
_NOTHING: ColumnElement[Any] = literal_column("0")


class MissingWindowsError(Exception):
    """A budget has no window for the time of a call; `make_windows` makes it."""


def _money(name: str) -> ColumnElement[Any]:
    return bindparam(name, type_=Money())


def _is_name_or_all(column: ColumnElement[Any], name: str) -> ColumnElement[bool]:
    return column.in_([literal_column(f"'{OrAll.ALL}'"), bindparam(name, type_=OrAll())])


_START: Case[Any] = case(
    (
        budgets.c.period == literal_column(f"'{Period.DAY}'"),
        bindparam("day", type_=windows.c.start.type),
    ),
    else_=bindparam("month", type_=windows.c.start.type),
)
_OF_CALL = (
    _is_name_or_all(budgets.c.principal, "of_principal"),
    _is_name_or_all(budgets.c.model_id, "of_model"),
)
_LIMIT = select(
    budgets.c.key, budgets.c.principal, budgets.c.model_id, budgets.c.period, budgets.c.most
)
_IN_ORDER = (budgets.c.principal, budgets.c.model_id, budgets.c.period)
_LIMITS = Prepared(_LIMIT.order_by(*_IN_ORDER))
_LIMITS_OF_CALL = Prepared(_LIMIT.where(*_OF_CALL).order_by(*_IN_ORDER))
_OF_KEY = (
    budgets.c.principal == bindparam("of_principal", type_=OrAll()),
    budgets.c.model_id == bindparam("of_model", type_=OrAll()),
    budgets.c.period == bindparam("of_period"),
)
_LIMIT_OF_KEY = Prepared(_LIMIT.where(*_OF_KEY))
_INSERT_LIMIT = Prepared(
    insert(budgets).values(
        {
            name: bindparam(name, type_=budgets.c[name].type)
            for name in ("principal", "model_id", "period", "most")
        }
    )
)
_CHANGE_LIMIT = Prepared(update(budgets).where(*_OF_KEY).values(most=_money("amount")))
_LIFT_LIMIT = Prepared(delete(budgets).where(*_OF_KEY))

_COUNTERS = (windows.c.spent, windows.c.estimated, windows.c.reserved)
_WINDOW = Prepared(
    select(*_COUNTERS).where(
        windows.c.budget == bindparam("budget"), windows.c.start == bindparam("start")
    )
)
_WINDOWS_OF_CALL = Prepared(
    select(windows.c.budget, *_COUNTERS)
    .join(budgets, budgets.c.key == windows.c.budget)
    .where(*_OF_CALL, windows.c.start == _START)
    .order_by(windows.c.budget)
    .with_for_update(of=windows)
)
_INSERT_WINDOW = Prepared(
    insert(windows).values({column: bindparam(column.name) for column in windows.c})
)
_IN_WINDOWS_OF_CALL = (
    windows.c.budget == budgets.c.key,
    *_OF_CALL,
    windows.c.start == _START,
)
_RESERVE = Prepared(
    update(windows)
    .where(*_IN_WINDOWS_OF_CALL)
    .values(reserved=windows.c.reserved + _money("amount"))
)
_SETTLE = Prepared(
    update(windows)
    .where(*_IN_WINDOWS_OF_CALL)
    .values(
        reserved=windows.c.reserved - _money("amount"),
        spent=windows.c.spent + _money("charge"),
        estimated=windows.c.estimated + _money("guess"),
    )
)


@cache
def _sums(*, of_principal: bool, of_model: bool) -> Prepared:
    """What the usage of a span adds up to: spent, part of it that is not known, reserved."""
    # As `UsageRecord.charge`.
    is_beyond = usage.c.estimated_cost > usage.c.reserved
    most = case((is_beyond, usage.c.estimated_cost), else_=usage.c.reserved)
    charge = func.coalesce(usage.c.cost, most)
    sums = select(
        *(
            type_coerce(func.coalesce(func.sum(each), _NOTHING), Money())
            for each in (
                case((IS_RUNNING_CALL, _NOTHING), else_=charge),
                case((IS_RUNNING_CALL, _NOTHING), (usage.c.cost.is_(None), most), else_=_NOTHING),
                case((IS_RUNNING_CALL, usage.c.reserved), else_=_NOTHING),
            )
        )
    ).where(usage.c.time >= bindparam("start"), usage.c.time < bindparam("end"))
    if of_principal:
        sums = sums.where(usage.c.principal == bindparam("principal"))
    if of_model:
        sums = sums.where(usage.c.used_model == bindparam("model"))
    return Prepared(sums)


def guard(connection: Connection, *, alone: bool) -> None:
    """Keeps those who decide about budgets apart, until the transaction ends.

    Args:
        connection: In a transaction that holds no other lock.
        alone: Limits and windows are going to change, else only what windows count.
    """
    if connection.dialect.name == "postgresql":
        way = "" if alone else "_shared"
        execute(connection, f"SELECT pg_advisory_xact_lock{way}({_DECISIONS})")


def reserve(connection: Connection, call: UsageRecord) -> None:
    """Sets aside what a call reserves, in every budget with a limit that it falls under.

    Raises:
        Refusal: BUDGET_EXCEEDED.
        MissingWindowsError: The transaction is to be undone, and run again after
            `make_windows`.
    """
    limits = _LIMITS_OF_CALL.rows(connection, **_of(call))
    if not limits:
        return
    place = _place(call)
    counted = {row[0]: row[1:] for row in _WINDOWS_OF_CALL.rows(connection, **place)}
    for key, *about, most in limits:
        if key not in counted:
            raise MissingWindowsError
        budget = _budget(BudgetKey(*about), most, counted[key], call.time)
        if not fits(budget, call.reserved):
            raise _exceeded(budget, call.reserved)
    _RESERVE.run(connection, amount=call.reserved, **place)


def settle(connection: Connection, begun: UsageRecord, ended: UsageRecord) -> None:
    """Gives back what a call has reserved, and charges for it."""
    place = _place(begun)
    # Locks them in order, which the update would not.
    if _WINDOWS_OF_CALL.rows(connection, **place):
        _SETTLE.run(
            connection,
            amount=begun.reserved,
            charge=ended.charge,
            guess=ended.charge if ended.cost is None else Decimal(0),
            **place,
        )


def make_windows(connection: Connection, call: UsageRecord) -> None:
    """Makes the windows that a call falls under and that are missing."""
    guard(connection, alone=True)
    for key, *about, _ in _LIMITS_OF_CALL.rows(connection, **_of(call)):
        _make_window(connection, key, BudgetKey(*about), call.time)


def get(connection: Connection, key: BudgetKey, now: datetime) -> Budget:
    """A budget in its present span, also one without a limit."""
    rows = _LIMIT_OF_KEY.rows(connection, **_of_key(key))
    return _present(connection, rows[0] if rows else (None, *_parts(key), None), now)


def listing(connection: Connection, now: datetime) -> list[Budget]:
    """All budgets with a limit; those of all together before those of one."""
    return [_present(connection, row, now) for row in _LIMITS.rows(connection)]


def set_limit(
    connection: Connection, key: BudgetKey, limit: Decimal | None, now: datetime
) -> Budget:
    """Sets or lifts a limit.

    Raises:
        Refusal: INVALID_ARGUMENT if it is no amount, or larger than can be kept.
    """
    guard(connection, alone=True)
    if limit is None:
        _LIFT_LIMIT.run(connection, **_of_key(key))
        return get(connection, key, now)
    if not limit.is_finite() or not 0 <= limit <= Money.MAX:
        raise invalid("limit", f"got {limit}, allowed: 0 to {Money.MAX} US dollars")
    if not _CHANGE_LIMIT.run(connection, amount=limit, **_of_key(key)):
        principal, model_id, period = _parts(key)
        _INSERT_LIMIT.run(
            connection, principal=principal, model_id=model_id, period=period, most=limit
        )
    [(number, *_)] = _LIMIT_OF_KEY.rows(connection, **_of_key(key))
    _make_window(connection, number, key, now)
    return get(connection, key, now)


def _make_window(connection: Connection, number: int, key: BudgetKey, at: datetime) -> None:
    """Makes the window of a budget for the span that holds a time, unless it is there."""
    start, _ = span(key.period, at)
    if _WINDOW.rows(connection, budget=number, start=start):
        return
    spent, estimated, reserved = _summed(connection, key, at)
    _INSERT_WINDOW.run(
        connection,
        budget=number,
        start=start,
        spent=spent,
        estimated=estimated,
        reserved=reserved,
    )


def _present(connection: Connection, limit: Any, now: datetime) -> Budget:
    """The budget of a row of `_LIMIT`, in its present span."""
    number, *about, most = limit
    key = BudgetKey(*about)
    start, _ = span(key.period, now)
    counted = () if number is None else _WINDOW.rows(connection, budget=number, start=start)
    return _budget(key, most, counted[0] if counted else _summed(connection, key, now), now)


def _summed(connection: Connection, key: BudgetKey, at: datetime) -> Any:
    start, end = span(key.period, at)
    values: dict[str, Any] = {"start": start, "end": end}
    if key.principal is not None:
        values["principal"] = key.principal
    if key.model_id is not None:
        values["model"] = key.model_id
    sums = _sums(of_principal=key.principal is not None, of_model=key.model_id is not None)
    return sums.rows(connection, **values)[0]


def _budget(key: BudgetKey, limit: Decimal | None, counted: Any, at: datetime) -> Budget:
    spent, estimated, reserved = counted
    start, end = span(key.period, at)
    return Budget(key, limit, spent, estimated, reserved, start, end)


def _of(call: UsageRecord) -> dict[str, Any]:
    return {"of_principal": call.principal, "of_model": call.used_model}


def _place(call: UsageRecord) -> dict[str, Any]:
    """Which windows a call falls under."""
    day, _ = span(Period.DAY, call.time)
    month, _ = span(Period.MONTH, call.time)
    return {"day": day, "month": month, **_of(call)}


def _parts(key: BudgetKey) -> tuple[str | None, str | None, Period]:
    return key.principal, key.model_id, key.period


def _of_key(key: BudgetKey) -> dict[str, Any]:
    return {"of_principal": key.principal, "of_model": key.model_id, "of_period": key.period}


def _exceeded(budget: Budget, amount: Decimal) -> Refusal:
    key = budget.key
    wait = "wait for running calls to end, " if budget.reserved else ""
    about = f"{key.principal or 'all callers'}, {key.model_id or 'all models'}, {key.period}"
    return Refusal(
        Reason.BUDGET_EXCEEDED,
        f"the budget ({about}) is {budget.limit} US dollars, of which {budget.spent} are spent and "
        f"{budget.reserved} are set aside for calls that are running; this call may cost up to "
        f"{amount}; {wait}choose a cheaper model, have the limit raised, "
        f"or wait until {budget.end:%Y-%m-%d %H:%M} UTC",
        metadata={
            "principal": key.principal or "",
            "model": key.model_id or "",
            "period": key.period,
            "limit": str(budget.limit),
            "spent": str(budget.spent),
            "reserved": str(budget.reserved),
            "needed": str(amount),
            "end": budget.end.isoformat(),
        },
    )
