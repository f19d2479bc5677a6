from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from analytics_service.usage.budgets import (
    budget_name,
    fits,
    span,
)
from analytics_service.usage.records import Budget, BudgetKey, Period

TIMES = st.datetimes(
    datetime(1971, 1, 1),  # noqa: DTZ001 - the strategy adds the zone
    datetime(2999, 1, 1),  # noqa: DTZ001 - the strategy adds the zone
    timezones=st.timezones(),
)
LIKE_OTHERS = st.sampled_from(["-", "%2D", "a/b", "a%2Fb", "a"])
NAMES = LIKE_OTHERS | st.text(st.characters(codec="utf-8"), min_size=1)
KEYS = st.builds(BudgetKey, st.none() | NAMES, st.none() | NAMES, st.sampled_from(Period))


@given(TIMES, st.sampled_from(Period))
def test_a_span_holds_its_time_and_spans_meet(at: datetime, period: Period) -> None:
    start, end = span(period, at)
    assert start <= at < end
    assert start.tzinfo is UTC
    assert span(period, start) == (start, end)
    assert span(period, end)[0] == end
    assert span(period, end - timedelta(microseconds=1)) == (start, end)


@pytest.mark.parametrize(
    ("period", "at", "start", "end"),
    [
        (Period.DAY, "2026-11-23T23:59:59+00:00", "2026-11-23", "2026-11-24"),
        (Period.DAY, "2026-11-24T00:30:00+01:00", "2026-11-23", "2026-11-24"),
        (Period.MONTH, "2026-12-31T23:00:00+00:00", "2026-12-01", "2027-01-01"),
        (Period.MONTH, "2028-02-29T12:00:00+00:00", "2028-02-01", "2028-03-01"),
    ],
)
def test_spans_are_days_and_months_of_utc(period: Period, at: str, start: str, end: str) -> None:
    assert span(period, datetime.fromisoformat(at)) == (
        datetime.fromisoformat(f"{start}T00:00:00+00:00"),
        datetime.fromisoformat(f"{end}T00:00:00+00:00"),
    )


def test_a_time_without_a_zone_is_an_error() -> None:
    with pytest.raises(ValueError, match="without a zone"):
        span(Period.DAY, datetime(2026, 1, 1))  # noqa: DTZ001 - that is the point


AMOUNTS = st.decimals(0, 1000, places=9)


@given(AMOUNTS, AMOUNTS, AMOUNTS, AMOUNTS)
def test_a_limit_is_kept_to_the_last_digit(
    limit: Decimal, spent: Decimal, reserved: Decimal, amount: Decimal
) -> None:
    start = datetime(2026, 11, 23, tzinfo=UTC)
    budget = Budget(
        BudgetKey(None, None, Period.DAY), limit, spent, Decimal(0), reserved, start, start
    )
    assert fits(budget, amount) is (not amount or limit - spent - reserved - amount >= 0)


def test_all_of_a_budget_may_be_used_and_without_a_limit_all_fits() -> None:
    start = datetime(2026, 11, 23, tzinfo=timezone.utc)  # noqa: UP017 - any spelling of UTC
    key = BudgetKey(None, None, Period.DAY)
    exact = Budget(key, Decimal(3), Decimal(1), Decimal(0), Decimal(1), start, start)
    assert fits(exact, Decimal(1))
    assert not fits(exact, Decimal("1.000000000001"))
    overdrawn = replace(exact, spent=Decimal(100))
    assert fits(overdrawn, Decimal(0))
    assert not fits(overdrawn, Decimal("0.000000000001"))
    unlimited = Budget(key, None, Decimal(1), Decimal(0), Decimal(1), start, start)
    assert fits(unlimited, Decimal(10**9))


@given(KEYS, KEYS)
def test_different_budgets_have_different_names(key: BudgetKey, other: BudgetKey) -> None:
    name = budget_name(key)
    assert (name == budget_name(other)) is (key == other)
    assert name.count("/") == 3
    assert name.isascii()


@pytest.mark.parametrize(
    ("key", "name"),
    [
        (BudgetKey(None, None, Period.DAY), "budgets/-/-/day"),
        (BudgetKey("ana", "gpt-4o", Period.MONTH), "budgets/ana/gpt-4o/month"),
        (BudgetKey("-", None, Period.DAY), "budgets/%2D/-/day"),
        (BudgetKey("a/b c", None, Period.DAY), "budgets/a%2Fb%20c/-/day"),
    ],
)
def test_names(key: BudgetKey, name: str) -> None:
    assert budget_name(key) == name
