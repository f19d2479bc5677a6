"""Amounts of money are exact, and unknown where they are not known."""

from __future__ import annotations

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from analytics_service._client.money import amount_text
from analytics_service.client import cost
from midcourse.analytics.v1 import session_pb2, usage_pb2

AMOUNTS = st.decimals(allow_nan=False, allow_infinity=False, min_value=0, max_value=10**12)


@given(AMOUNTS)
def test_amounts_survive_the_way(amount: Decimal) -> None:
    text = amount_text(amount)
    assert "E" not in text
    assert cost(usage_pb2.UsageRecord(cost=text)) == amount
    assert cost(usage_pb2.UsageSummary(cost=text, calls=1)) == amount


def test_an_unknown_cost_is_not_zero() -> None:
    assert cost(usage_pb2.UsageRecord(estimated_cost="0.10")) is None
    assert cost(usage_pb2.UsageRecord(cost="0")) == 0
    assert cost(usage_pb2.UsageSummary(cost="0.10", unknown_cost_calls=1)) is None
    assert cost(session_pb2.Session(cost="0.10", unknown_cost_calls=1)) is None
    assert cost(session_pb2.Message()) is None
    assert cost(session_pb2.Message(cost="0.10")) == Decimal("0.10")


@pytest.mark.parametrize("text", ["", "a lot", "NaN", "Infinity"])
def test_what_is_no_amount(text: str) -> None:
    with pytest.raises(ValueError, match="for an amount of US dollars"):
        cost(usage_pb2.UsageRecord(cost=text))


def test_a_float_is_no_amount() -> None:
    with pytest.raises(TypeError, match=r"got 5\.1, a float, allowed: Decimal, int or str"):
        amount_text(5.1)  # type: ignore[arg-type]  # as of a caller without a type checker


def test_other_types_of_amounts() -> None:
    assert amount_text(5) == "5"
    assert amount_text("5.0") == "5.0"
