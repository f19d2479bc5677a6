"""`midcourse usage`."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from itertools import islice
from typing import TYPE_CHECKING, Annotated, Literal, TypeAlias

import typer

from control_plane.cli.analytics.options import ModelOption, PrincipalOption, SessionOption
from control_plane.cli.analytics.session import AnalyticsSession, analytics_verb
from control_plane.cli.durations import parse_duration

if TYPE_CHECKING:
    from analytics_service.client import UsageFilter

GroupName: TypeAlias = Literal["model", "principal", "day", "session"]

_RECORDS = 50


def _moment(text: str) -> datetime:
    """Returns the time that a text means: so long ago, or a day, UTC."""
    try:
        return datetime.now(UTC) - timedelta(seconds=parse_duration(text))
    except ValueError:
        pass
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise typer.BadParameter(
            f"{text!r} is no time; write how long ago, such as 7d or 12h, or a day, such as"
            " 2026-11-01"
        ) from None
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)


@analytics_verb
def usage(
    session: AnalyticsSession,
    by: Annotated[GroupName, typer.Option("--by", help="What each row sums up.")] = "model",
    since: Annotated[
        datetime | None,
        typer.Option(
            "--since",
            parser=_moment,
            metavar="TIME",
            help="Only from then on: 7d, 12h, or a day such as 2026-11-01 (UTC).",
        ),
    ] = None,
    model: ModelOption = "",
    principal: PrincipalOption = "",
    in_session: SessionOption = "",
    records: Annotated[
        bool, typer.Option("--records", help="List the single calls to providers, newest first.")
    ] = False,
    last: Annotated[
        int | None,
        typer.Option(
            "--last",
            "-n",
            min=1,
            help=f"With --records: only the newest so many; by default {_RECORDS} in a table, all"
            " in JSON.",
        ),
    ] = None,
) -> None:
    """Show what was used and spent.

    Costs are exact. What is not known is said to be unknown, and is in no sum.
    """
    if last is not None and not records:
        raise typer.BadParameter("--last is how many --records; give both")
    only: UsageFilter = {
        "start_time": since,
        "model": model,
        "principal": principal,
        "session": in_session,
    }
    if records:
        _show_records(session, only, last)
    else:
        _show_sums(session, by, only)


def _show_sums(session: AnalyticsSession, by: GroupName, only: UsageFilter) -> None:
    with session.connect() as analytics:
        answer = analytics.get_usage(by, **only)
    if session.output.is_json:
        session.output.message(answer)
    elif not answer.total.calls:
        session.output.line(
            "no calls to providers yet that you may see" if not any(only.values()) else "no calls"
        )
    else:
        from control_plane.cli.analytics import tables

        session.output.show(tables.usage(by, answer.summaries, answer.total))


def _show_records(session: AnalyticsSession, only: UsageFilter, last: int | None) -> None:
    from midcourse.analytics.v1 import analytics_pb2

    most = last if session.output.is_json else last or _RECORDS
    with session.connect() as analytics:
        page_size = min(most or 1_000, 1_000)
        found = list(islice(analytics.list_usage(page_size=page_size, **only), most))
    if session.output.is_json:
        session.output.message(analytics_pb2.GetUsageResponse(records=found))
    elif not found:
        session.output.line("no calls")
    else:
        from control_plane.cli.analytics import tables

        session.output.show(tables.records(found, time.time()))
