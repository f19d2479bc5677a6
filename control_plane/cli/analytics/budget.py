"""`midcourse budget`, `budget set` and `budget unset`."""

from __future__ import annotations

from decimal import Decimal
from typing import TYPE_CHECKING, Annotated, Literal, TypeAlias

import typer

from control_plane.cli.analytics.groups import listing_group
from control_plane.cli.analytics.money import parse_amount
from control_plane.cli.analytics.options import ModelOption, PrincipalOption
from control_plane.cli.analytics.session import AnalyticsSession, analytics_verb

if TYPE_CHECKING:
    from midcourse.analytics.v1 import usage_pb2

PeriodName: TypeAlias = Literal["day", "month"]
PerOption = Annotated[PeriodName, typer.Option("--per", help="Span of time, UTC.")]


def _list_budgets(session: AnalyticsSession) -> None:
    """Show what is left of budgets; set and unset them."""
    from midcourse.analytics.v1 import analytics_pb2

    with session.connect() as analytics:
        listing = analytics.list_budgets()
    if session.output.is_json:
        session.output.message(analytics_pb2.ListBudgetsResponse(budgets=listing))
    elif not listing:
        session.output.line("no budgets; `midcourse budget set 5 --per day` makes one")
    else:
        _show(session, listing)


@analytics_verb
def set_budget(
    session: AnalyticsSession,
    amount: Annotated[
        Decimal,
        typer.Argument(
            metavar="AMOUNT",
            parser=parse_amount,
            help="Most to be spent in the span, in US dollars, such as 5 or 0.25.",
        ),
    ],
    per: PerOption,
    principal: PrincipalOption = "",
    model: ModelOption = "",
) -> None:
    """Limit what may be spent: by everybody and on all models, unless told otherwise."""
    from midcourse.analytics.v1 import analytics_pb2

    with session.connect() as analytics:
        budget = analytics.set_budget(amount, per, principal=principal, model=model)
    if session.output.is_json:
        session.output.message(analytics_pb2.SetBudgetResponse(budget=budget))
    else:
        _show(session, [budget])


@analytics_verb
def unset_budget(
    session: AnalyticsSession,
    per: PerOption,
    principal: PrincipalOption = "",
    model: ModelOption = "",
) -> None:
    """Lift a limit."""
    from midcourse.analytics.v1 import analytics_pb2

    with session.connect() as analytics:
        budget = analytics.set_budget(None, per, principal=principal, model=model)
    if session.output.is_json:
        session.output.message(analytics_pb2.SetBudgetResponse(budget=budget))
    else:
        from control_plane.cli import printable

        who = printable.line(budget.principal) or "everybody"
        what = printable.line(budget.model_id) or "all models"
        session.output.line(f"no limit per {per} for {who} on {what} any more")


def _show(session: AnalyticsSession, listing: list[usage_pb2.Budget]) -> None:
    from control_plane.cli.analytics import tables

    session.output.show(tables.budgets(listing))


budget = listing_group(_list_budgets)
budget.command("set")(set_budget)
budget.command("unset")(unset_budget)
