"""The rules of budgets: their spans, which of them a call falls under, whether it fits, names."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from itertools import product
from urllib.parse import quote, unquote

from analytics_service.errors import invalid
from analytics_service.usage.records import Budget, BudgetKey, Period

_COLLECTION = "budgets"
_ALL = "-"


def span(period: Period, at: datetime) -> tuple[datetime, datetime]:
    """Returns start and end of the day or month, UTC, that holds a time.

    Args:
        period: Which span.
        at: The time, with a zone.

    Raises:
        ValueError: The time has no zone.
    """
    if at.tzinfo is None:
        raise ValueError(f"got a time without a zone: {at.isoformat()}")
    day = at.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    match period:
        case Period.DAY:
            return day, day + timedelta(days=1)
        case Period.MONTH:
            first = day.replace(day=1)
            # 32 days on it is the next month, whatever this one's length.
            return first, (first + timedelta(days=32)).replace(day=1)


def keys_for(principal: str, model_id: str) -> tuple[BudgetKey, ...]:
    """Returns all budgets that a call falls under, in a fixed order.

    Args:
        principal: Name of the caller.
        model_id: Id of the model that is used.
    """
    return tuple(
        BudgetKey(who, which, period)
        for who, which, period in product((principal, None), (model_id, None), Period)
    )


def fits(budget: Budget, amount: Decimal) -> bool:
    """Whether a budget leaves room for an amount beside what is spent and reserved.

    For nothing there is always room, even in a budget that is overdrawn.
    """
    if budget.limit is None or not amount:
        return True
    return budget.spent + budget.reserved + amount <= budget.limit


def budget_name(key: BudgetKey) -> str:
    """Returns a budget's resource name: budgets/{principal}/{model}/{day|month}."""
    return f"{_COLLECTION}/{_segment(key.principal)}/{_segment(key.model_id)}/{key.period}"


def parse_budget_name(name: str, field: str = "name") -> BudgetKey:
    """Reads a budget's resource name.

    Args:
        name: The name.
        field: Path of the field that holds it, for the message.

    Raises:
        Refusal: INVALID_ARGUMENT: it is no such name.
    """
    parts = name.split("/")
    if len(parts) == 4 and parts[0] == _COLLECTION and parts[3] in tuple(Period):
        try:
            key = BudgetKey(_unquoted(parts[1]), _unquoted(parts[2]), Period(parts[3]))
        except ValueError:
            pass  # the same message as for any other name that is none
        else:
            return key
    raise invalid(
        field,
        f'got "{name}", allowed: {_COLLECTION}/{{principal}}/{{model}}/{{day|month}}, names '
        f'percent-encoded, "{_ALL}" for all principals or all models',
    )


def _segment(name: str | None) -> str:
    if name is None:
        return _ALL
    # What is called "-" must not mean all.
    return "%2D" if name == _ALL else quote(name, safe="")


def _unquoted(segment: str) -> str | None:
    """Reads a part of a name; ValueError: it is empty, or no percent-encoded UTF-8."""
    if segment == _ALL:
        return None
    text = unquote(segment, errors="strict")
    if not text:
        raise ValueError("empty")
    return text
