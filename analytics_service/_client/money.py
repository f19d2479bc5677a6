"""Amounts of US dollars, exact, between Python and the API's text."""

from __future__ import annotations

from decimal import Decimal, InvalidOperation

from midcourse.analytics.v1 import session_pb2, usage_pb2

Amount = Decimal | int | str
"""US dollars; a float would not be exact."""


def cost(
    usage: usage_pb2.UsageRecord
    | usage_pb2.UsageSummary
    | session_pb2.Message
    | session_pb2.Session,
) -> Decimal | None:
    """Returns what something cost, in US dollars, exactly; None if that is not known.

    A sum is not known if the cost of one of its calls is not; then its field ``cost`` has the
    part that is. An estimate is no cost: see ``estimated_cost``.

    Raises:
        ValueError: The text is no amount.
    """
    if isinstance(usage, usage_pb2.UsageRecord):
        return _decimal(usage.cost) if usage.HasField("cost") else None
    if usage.unknown_cost_calls or not usage.cost:
        return None
    return _decimal(usage.cost)


def amount_text(amount: Amount) -> str:
    """Returns an amount as the API takes it; a text goes as it is, for the service to check.

    Raises:
        TypeError: It is a float.
    """
    if isinstance(amount, float):  # whoever uses no type checker
        raise TypeError(f"got {amount!r}, a float, allowed: Decimal, int or str, which are exact")
    return amount if isinstance(amount, str) else format(Decimal(amount), "f")


def _decimal(text: str) -> Decimal:
    try:
        amount = Decimal(text)
    except InvalidOperation:
        amount = Decimal("nan")
    if not amount.is_finite():
        raise ValueError(f"the service sent {text!r} for an amount of US dollars")
    return amount
