"""The rules of budgets: their spans, whether a call fits, names."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from urllib.parse import quote

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


def _segment(name: str | None) -> str:
    if name is None:
        return _ALL
    # What is called "-" must not mean all.
    return "%2D" if name == _ALL else quote(name, safe="")
