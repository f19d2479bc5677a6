"""Tables about models, sessions, usage and budgets, out of the API's messages."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from decimal import Decimal
from typing import Final

from rich.console import Group
from rich.text import Text

from control_plane.cli import format as fmt
from control_plane.cli import printable
from control_plane.cli.analytics import words
from control_plane.cli.fitting import FittingTable
from midcourse.analytics.v1 import model_pb2, session_pb2, usage_pb2

_BAR: Final = 12
_ALMOST: Final = Decimal("0.8")
_PERCENT: Final = Decimal("0.01")
_KINDS: Final = {
    "IN": "input",
    "OUT": "output",
    "FROM CACHE": "cache_read",
    "TO CACHE": "cache_write",
    "REASONING": "reasoning",
}
_ALWAYS: Final = ("IN", "OUT")


def models(listing: Sequence[model_pb2.Model], current: str = "") -> Group:
    """Returns the table of models; those that can not be chosen are dim, the reasons below.

    Args:
        listing: The models.
        current: Id of the one that is in use; it is marked.
    """
    table = FittingTable(
        *("MODEL", "PROVIDER", "COST", "IN $/M", "OUT $/M", "CONTEXT", "TOOLS", "AVAILABLE"),
        *("LIFECYCLE", "NOTES"),
        right=("IN $/M", "OUT $/M", "CONTEXT"),
        wrap={"LIFECYCLE": 16, "NOTES": 16},
        leave_out=("TOOLS", "CONTEXT", "PROVIDER", "NOTES", "LIFECYCLE"),
        say_so=True,
    )
    reasons: list[str] = []
    by_id = {model.model_id: model for model in listing}
    for model in listing:
        style = "" if model.available else "dim"
        mark = "bold" if model.model_id == current or (not current and model.is_default) else style
        prices = model.prices if model.HasField("prices") else None
        more = "+" if prices is not None and prices.rises_with_length else ""
        cells = (
            printable.line(model.provider),
            words.BANDS.get(model.cost_band, fmt.UNKNOWN),
            fmt.UNKNOWN if prices is None else words.price(prices.input) + more,
            fmt.UNKNOWN if prices is None else words.price(prices.output) + more,
            words.count(model.context_window),
            "yes" if model.supports_tools else "no",
            _available(model, current, reasons),
            printable.line(words.lifecycle(model, words.live_successor(model, by_id))),
            printable.line(model.note),
        )
        table.add_row(
            Text(printable.line(model.model_id), style=mark), *(Text(c, style) for c in cells)
        )
    notes = [Text(f"{number} {reason}", "dim") for number, reason in enumerate(reasons, 1)]
    return Group(table, *([Text(), *notes] if notes else []))


def _available(model: model_pb2.Model, current: str, reasons: list[str]) -> str:
    """Returns yes, or no with the number of the reason, which is added if it is a new one."""
    if model.model_id == current:
        return "in use"
    if model.available:
        return "yes, default" if model.is_default else "yes"
    if model.lifecycle.stage == model_pb2.LIFECYCLE_STAGE_RETIRED:
        return "no"  # its lifecycle says why, and what to take instead
    reason = printable.line(model.unavailable_reason) or "the service has not said why"
    if reason not in reasons:
        reasons.append(reason)
    return f"no, see {reasons.index(reason) + 1}"


def sessions(listing: Iterable[session_pb2.Session], now: float) -> FittingTable:
    """Returns the table of sessions."""
    table = FittingTable(
        *("SESSION", "TITLE", "MODEL", "MESSAGES", "COST", "USED"),
        right=("MESSAGES",),
        wrap={"TITLE": 20, "COST": 12},
        leave_out=("MESSAGES", "MODEL", "COST"),
    )
    for session in listing:
        table.add_row(
            words.session_id(session.name),
            printable.line(session.title) or fmt.UNKNOWN,
            printable.line(session.model_id) or "default",
            words.count(session.message_count),
            words.sum_cost(session.cost, session.unknown_cost_calls),
            words.age(session, "update_time", now),
        )
    return table


def usage(
    by: str, summaries: Sequence[usage_pb2.UsageSummary], total: usage_pb2.UsageSummary
) -> FittingTable:
    """Returns the table of what was used and spent, with the sum of all in the last row.

    Args:
        by: What each row is the sum of, such as "model".
        summaries: The sums.
        total: The sum of all.
    """
    header = by.upper()
    kinds = [kind for kind in _KINDS if kind in _ALWAYS or getattr(total.tokens, _KINDS[kind])]
    unfinished = ["UNFINISHED"] if total.unfinished_calls else []
    table = FittingTable(
        *(header, "CALLS", *unfinished, *kinds, "COST"),
        right=("CALLS", "UNFINISHED", *_KINDS),
        wrap={"COST": 14},
        leave_out=("REASONING", "TO CACHE", "FROM CACHE", "UNFINISHED", "OUT", "IN"),
        say_so=True,
    )
    for one in (*summaries, total):
        is_total = one is total
        key = "total" if is_total else words.session_id(one.key) or fmt.UNKNOWN
        cells = [
            key,
            words.count(one.calls),
            *(words.count(one.unfinished_calls) for _ in unfinished),
            *(words.known_count(one.tokens, _KINDS[kind]) for kind in kinds),
            words.sum_cost(one.cost, one.unknown_cost_calls, one.estimated_cost),
        ]
        style = "bold" if is_total else ""
        table.add_row(*(Text(cell, style=style) for cell in cells[:-1]), _cost(cells[-1], one))
    return table


def _cost(text: str, one: usage_pb2.UsageSummary) -> Text:
    return Text(text, style="yellow" if one.unknown_cost_calls else "")


def records(listing: Iterable[usage_pb2.UsageRecord], now: float) -> FittingTable:
    """Returns the table of single calls to providers."""
    table = FittingTable(
        *("WHEN", "MODEL", "SESSION", "BY", "TRY", "IN", "OUT", "COST", "FIRST TOKEN", "TIME"),
        "OUTCOME",
        right=("TRY", "IN", "OUT", "FIRST TOKEN", "TIME"),
        wrap={"COST": 14, "OUTCOME": 14},
        leave_out=("FIRST TOKEN", "TRY", "BY", "SESSION", "TIME", "IN", "OUT"),
        say_so=True,
    )
    for record in listing:
        told = record.HasField("duration")
        first = record.HasField("time_to_first_token")
        table.add_row(
            words.age(record, "time", now),
            words.model_id(record.served_model or record.used_model),
            words.session_id(record.session),
            printable.line(record.principal) or fmt.UNKNOWN,
            f"{record.round + 1}.{record.attempt}",
            words.known_count(record.tokens, "input"),
            words.known_count(record.tokens, "output"),
            Text(words.calls_cost([record]), style="" if record.HasField("cost") else "yellow"),
            fmt.span(record.time_to_first_token if first else None),
            fmt.span(record.duration if told else None),
            words.outcome(record),
        )
    return table


def budgets(listing: Iterable[usage_pb2.Budget]) -> FittingTable:
    """Returns the table of budgets."""
    table = FittingTable(
        *("WHO", "MODEL", "PER", "LIMIT", "SPENT", "RESERVED", "LEFT", "USED"),
        right=("LIMIT", "SPENT", "RESERVED", "LEFT"),
        leave_out=("RESERVED", "USED"),
        say_so=True,
    )
    for budget in listing:
        is_bound = bool(words.amount(budget.estimated))
        limited = budget.HasField("limit")
        table.add_row(
            printable.line(budget.principal) or "everybody",
            printable.line(budget.model_id) or "all",
            words.period(budget),
            words.money(budget.limit) if limited else "none",
            ("≤ " if is_bound else "") + words.money(budget.spent or "0"),
            words.money(budget.reserved or "0"),
            words.dollars(words.left(budget)),
            _bar(words.share_used(budget)),
        )
    return table


def _bar(share: Decimal | None) -> Text:
    """Returns how much of a budget is used as a bar with a percentage."""
    if share is None:
        return Text(fmt.UNKNOWN)
    # Something used is never an empty bar, something left never a full one.
    filled = round(_BAR * min(share, Decimal(1)))
    if 0 < share < 1:
        filled = min(max(filled, 1), _BAR - 1)
    style = "green" if share < _ALMOST else "yellow" if share < 1 else "red"
    bar = Text("█" * filled, style=style)
    bar.append("░" * (_BAR - filled), style="dim")
    return bar.append(f" {_percent(share)}", style="default")


def _percent(share: Decimal) -> str:
    if 0 < share < _PERCENT:
        return "<1%"
    return f"{int(share * 100)}%"  # rounded down: what is not used up is not 100%


def options(listing: Iterable[model_pb2.ModelOption]) -> Group:
    """Returns the table of models that might answer a question, and why others are left out."""
    table = FittingTable(
        *("MODEL", "ABOUT", "GOOD ENOUGH", "WHY"),
        right=("ABOUT",),
        wrap={"WHY": 30},
        leave_out=("GOOD ENOUGH",),
    )
    left_out: dict[str, list[str]] = {}
    for option in listing:
        model = printable.line(option.model_id)
        if option.excluded:
            why = printable.line(next(iter(option.reasons), "the service has not said why"))
            left_out.setdefault(why, []).append(model)
            continue
        table.add_row(
            model,
            words.estimate(option),
            "likely" if option.good_enough else "perhaps not",
            printable.line(" ".join(option.reasons)),
        )
    notes = [
        Text(f"left out: {', '.join(names)}. {why}", style="dim") for why, names in left_out.items()
    ]
    return Group(*([table] if table.rows else []), *notes)
