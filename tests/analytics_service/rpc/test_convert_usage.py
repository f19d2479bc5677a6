"""Amounts and usage at the edge: what is taken, and what is absent where it is not known."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from analytics_service.rpc.convert_usage import amount_of, record
from analytics_service.usage.records import CallOutcome, UsageRecord
from analytics_service.usage.tokens import TokenUsage
from grpc_runtime.errors import StatusError

RECORD = UsageRecord(
    id="u1",
    time=datetime(2026, 11, 23, tzinfo=UTC),
    principal="ann",
    session_id="s1",
    message_number=2,
    requested_model="m",
    used_model="m",
    provider="p",
    round=0,
    attempt=1,
    outcome=CallOutcome.COMPLETED,
    replica="r1",
    reserved=Decimal(0),
)


@given(st.decimals(min_value=0, max_value=10**9, places=12))
def test_every_amount_that_can_be_kept_is_taken_as_it_is(amount: Decimal) -> None:
    assert amount_of(format(amount, "f"), "limit") == amount


@pytest.mark.parametrize(
    "text",
    [
        *("", " 1", "-1", "NaN", "Infinity", "1e400", "1_000", "٣", "1,5", "$5", ".5", "5.", "0x1"),
        "0.0000000000001",  # would be kept as 0: a limit of nothing
        "1e-13",
    ],
)
def test_what_is_no_amount_that_can_be_kept(text: str) -> None:
    with pytest.raises(StatusError, match=r"limit: got .*, allowed: .* at most 12 decimals"):
        amount_of(text, "limit")


def test_a_guess_that_was_not_made_is_absent() -> None:
    assert not record(RECORD).HasField("estimated_tokens")
    guessed = record(replace(RECORD, estimated_tokens=TokenUsage(input=0)))
    assert guessed.estimated_tokens.HasField("input")
