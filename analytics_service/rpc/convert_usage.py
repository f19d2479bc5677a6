"""Usage and budgets between protobuf and domain."""

from __future__ import annotations

import re
from decimal import Decimal

from analytics_service.names import message_name, session_name
from analytics_service.rpc.convert_model import money, optional_money
from analytics_service.rpc.names import parse_session
from analytics_service.usage import records
from analytics_service.usage.budgets import budget_name
from analytics_service.usage.tokens import UNKNOWN, TokenUsage
from grpc_runtime.convert import time_of, timestamp
from grpc_runtime.errors import invalid_argument
from midcourse.analytics.v1 import analytics_pb2, usage_pb2

_OUTCOMES = {
    records.CallOutcome.RUNNING: usage_pb2.CALL_OUTCOME_RUNNING,
    records.CallOutcome.COMPLETED: usage_pb2.CALL_OUTCOME_COMPLETED,
    records.CallOutcome.CANCELLED: usage_pb2.CALL_OUTCOME_CANCELLED,
    records.CallOutcome.FAILED: usage_pb2.CALL_OUTCOME_FAILED,
    records.CallOutcome.INTERRUPTED: usage_pb2.CALL_OUTCOME_INTERRUPTED,
}
_PERIODS = {
    records.Period.DAY: usage_pb2.BUDGET_PERIOD_DAY,
    records.Period.MONTH: usage_pb2.BUDGET_PERIOD_MONTH,
}
_PERIODS_OF = {value: period for period, value in _PERIODS.items()}
_GROUPS_OF = {
    usage_pb2.USAGE_GROUP_UNSPECIFIED: records.UsageGroup.ALL,
    usage_pb2.USAGE_GROUP_MODEL: records.UsageGroup.MODEL,
    usage_pb2.USAGE_GROUP_PRINCIPAL: records.UsageGroup.PRINCIPAL,
    usage_pb2.USAGE_GROUP_SESSION: records.UsageGroup.SESSION,
    usage_pb2.USAGE_GROUP_DAY: records.UsageGroup.DAY,
}
_AMOUNT = re.compile(r"[0-9]{1,20}(\.[0-9]{1,20})?([eE][+-]?[0-9]{1,2})?")
_MAX_DECIMALS = 12
"""As many as amounts are kept with."""


def tokens(used: TokenUsage) -> usage_pb2.TokenUsage:
    """Tokens by kind."""
    return usage_pb2.TokenUsage(
        input=used.input,
        output=used.output,
        cache_read=used.cache_read,
        cache_write=used.cache_write,
        reasoning=used.reasoning,
    )


def record(call: records.UsageRecord) -> usage_pb2.UsageRecord:
    """One call to a provider."""
    return usage_pb2.UsageRecord(
        name=f"usage/{call.id}",
        time=timestamp(call.time),
        principal=call.principal,
        session=session_name(call.session_id),
        message=message_name(call.session_id, call.message_number),
        requested_model=call.requested_model,
        used_model=call.used_model,
        served_model=call.served_model or "",
        provider=call.provider,
        round=call.round,
        attempt=call.attempt,
        outcome=_OUTCOMES[call.outcome],
        error=call.error,
        tokens=tokens(call.tokens),
        cost=None if call.cost is None else money(call.cost),
        estimated_cost=None if call.estimated_cost is None else money(call.estimated_cost),
        unknown_reason=call.unknown_reason,
        rates=None if call.rates is None else _rates(call.rates),
        time_to_first_token=call.time_to_first_token,
        duration=call.duration,
        estimated_tokens=None
        if call.estimated_tokens == UNKNOWN
        else tokens(call.estimated_tokens),
    )


def _rates(rates: records.Rates) -> usage_pb2.AppliedRates:
    return usage_pb2.AppliedRates(
        input=money(rates.input),
        output=money(rates.output),
        cache_read=optional_money(rates.cache_read),
        cache_write=optional_money(rates.cache_write),
        source=rates.source,
    )


def summary(total: records.UsageSummary, group: records.UsageGroup) -> usage_pb2.UsageSummary:
    """A sum of usage."""
    key = total.key
    if group is records.UsageGroup.SESSION:
        key = session_name(key)
    return usage_pb2.UsageSummary(
        key=key,
        calls=total.calls,
        unfinished_calls=total.unfinished_calls,
        tokens=tokens(total.tokens),
        cost=money(total.cost),
        unknown_cost_calls=total.unknown_cost_calls,
        estimated_cost=money(total.estimated_cost),
    )


def group_of(group: usage_pb2.UsageGroup.ValueType) -> records.UsageGroup:
    """What to sum up by.

    Raises:
        StatusError: INVALID_ARGUMENT, if it is not known.
    """
    if group not in _GROUPS_OF:
        raise invalid_argument(
            "group_by", f"got {group}, allowed: {min(_GROUPS_OF)} to {max(_GROUPS_OF)}"
        )
    return _GROUPS_OF[group]


def filter_of(request: analytics_pb2.GetUsageRequest) -> records.UsageFilter:
    """Which records a request asks for.

    Raises:
        StatusError: INVALID_ARGUMENT, if a field is not allowed.
    """
    has_start, has_end = request.HasField("start_time"), request.HasField("end_time")
    return records.UsageFilter(
        start=time_of(request.start_time, "start_time") if has_start else None,
        end=time_of(request.end_time, "end_time") if has_end else None,
        model_id=request.model_id or None,
        principal=_principal(request.principal),
        session_id=parse_session(request.session, "session") if request.session else None,
    )


def budget(state: records.Budget) -> usage_pb2.Budget:
    """A budget in its present span."""
    key = state.key
    return usage_pb2.Budget(
        name=budget_name(key),
        principal=key.principal or "",
        model_id=key.model_id or "",
        period=_PERIODS[key.period],
        limit=None if state.limit is None else money(state.limit),
        spent=money(state.spent),
        reserved=money(state.reserved),
        estimated=money(state.estimated),
        start_time=timestamp(state.start),
        end_time=timestamp(state.end),
    )


def _principal(name: str) -> str | None:
    if not name.isprintable():
        raise invalid_argument("principal", "got control characters, allowed: a caller's name")
    return name or None


def budget_key_of(
    request: analytics_pb2.GetBudgetRequest | analytics_pb2.SetBudgetRequest,
) -> records.BudgetKey:
    """What budget a request is about.

    Raises:
        StatusError: INVALID_ARGUMENT, if the period is not known, or the principal no name.
    """
    if request.period not in _PERIODS_OF:
        raise invalid_argument("period", f"got {request.period}, allowed: 1 (day), 2 (month)")
    return records.BudgetKey(
        _principal(request.principal), request.model_id or None, _PERIODS_OF[request.period]
    )


def amount_of(text: str, field: str) -> Decimal:
    """An amount of money from a decimal number in text.

    Raises:
        StatusError: INVALID_ARGUMENT, if it is none, negative, or finer than amounts are kept.
    """
    amount = Decimal(text) if _AMOUNT.fullmatch(text) else Decimal("NaN")
    exponent = amount.as_tuple().exponent
    # What is finer would be rounded where it is kept, and a limit might become one of nothing.
    if not isinstance(exponent, int) or exponent < -_MAX_DECIMALS:
        raise invalid_argument(
            field,
            f"got {text[:60]!r}, allowed: US dollars as a decimal number with at most "
            f'{_MAX_DECIMALS} decimals, such as "2.50"',
        )
    return amount
