"""Amounts of US dollars on the command line: ``5``, ``0.25``, ``$12.50``."""

from __future__ import annotations

from decimal import Decimal, InvalidOperation

import typer


def parse_amount(text: str) -> Decimal:
    """Returns the amount that a text means, exactly.

    Raises:
        typer.BadParameter: It is none, or below 0.
    """
    try:
        amount = Decimal(text.strip().removeprefix("$"))
    except InvalidOperation:
        amount = Decimal("nan")
    if not amount.is_finite() or amount < 0:
        raise typer.BadParameter(
            f"{text!r} is no amount of US dollars; write 5 or 0.25, 0 to allow nothing"
        )
    return amount
