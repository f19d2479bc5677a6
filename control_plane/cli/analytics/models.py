"""`midcourse models` and `recommend`."""

from __future__ import annotations

from decimal import Decimal
from typing import Annotated, Literal, TypeAlias

import typer

from control_plane.cli.analytics.money import parse_amount
from control_plane.cli.analytics.options import QuestionArgument, SessionOption
from control_plane.cli.analytics.session import AnalyticsSession, analytics_verb
from control_plane.cli.exits import CommandError, ExitCode

BandName: TypeAlias = Literal["free", "$", "$$", "$$$", "$$$$"]


@analytics_verb
def list_models(
    session: AnalyticsSession,
    available: Annotated[
        bool, typer.Option("--available", help="Only the models that can be chosen now.")
    ] = False,
) -> None:
    """List the models that can answer, with prices.

    Prices are US dollars per million tokens; + means more for long prompts. Models that can not be
    chosen are dim, with the reasons below the table.
    """
    from midcourse.analytics.v1 import analytics_pb2

    with session.connect() as analytics:
        listing = analytics.list_models(available_only=available)
    if session.output.is_json:
        session.output.message(analytics_pb2.ListModelsResponse(models=listing))
    elif not listing:
        session.output.line("no model can be chosen; `midcourse models` says why")
    else:
        from control_plane.cli.analytics import tables

        session.output.show(tables.models(listing))


@analytics_verb
def recommend(
    session: AnalyticsSession,
    question: QuestionArgument,
    in_session: SessionOption = "",
    max_band: Annotated[
        BandName | None, typer.Option("--max-band", help="Dearest band to recommend.")
    ] = None,
    max_cost: Annotated[
        Decimal | None,
        typer.Option(
            "--max-cost",
            parser=parse_amount,
            metavar="AMOUNT",
            help="Most that the answer may cost, in US dollars; by default what budgets leave.",
        ),
    ] = None,
    allow_without_tools: Annotated[
        bool,
        typer.Option("--allow-without-tools", help="Recommend models too that can not call tools."),
    ] = False,
) -> None:
    """Say which model suits a question.

    The cheapest of those that are likely good enough. Advice only: nothing is asked or changed.
    """
    with session.connect() as analytics:
        advice = analytics.recommend_model(
            " ".join(question),
            session=in_session,
            max_cost_band=max_band,
            max_cost=max_cost,
            allow_without_tools=allow_without_tools,
        )
    if session.output.is_json:
        session.output.message(advice)
    else:
        from rich.text import Text

        from control_plane.cli import printable
        from control_plane.cli.analytics import tables, words

        reasons = [printable.line(reason) for reason in advice.reasons]
        if advice.model_id:
            head = Text(printable.line(advice.model_id), style="bold")
            session.output.show(head.append(f"  ({words.score(advice)})", style="default"))
            session.output.show(*(Text(f"  {reason}") for reason in reasons))
        session.output.show("", tables.options(advice.options))
        if advice.evaluation:
            session.output.show("", Text(printable.line(advice.evaluation), style="dim"))
    if not advice.model_id:
        why = "; ".join(advice.reasons) or "the service has not said why"
        raise CommandError(f"no model fits: {why}", ExitCode.REFUSED)
