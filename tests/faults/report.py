"""A table of what a history holds, and of the violations in it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from rich.console import Console
from rich.table import Table

from tests.faults.history import History
from tests.faults.records import (
    Acknowledged,
    Answered,
    Asked,
    Delivered,
    Failed,
    Fault,
    InForce,
    Run,
    StoredEvent,
    StoredUpdate,
    Told,
    TrainerSettled,
    WatchBegan,
    Watched,
    Welcomed,
)
from tests.faults.violations import Violation

UNEXPECTED = ("INTERNAL", "UNKNOWN", "DATA_LOSS", "UNIMPLEMENTED")
"""Codes that no caller should ever see."""


def unexpected(history: History) -> list[Failed]:
    """Errors that no fault excuses."""
    return [failed for failed in history.of(Failed) if failed.code in UNEXPECTED]


def show(history: History, violations: Sequence[Violation], console: Console) -> None:
    """Prints what was done, what was seen, and what was broken."""
    table = Table(title=_title(history), title_justify="left")
    table.add_column("what")
    table.add_column("number", justify="right")
    table.add_column("of which")
    for what, number, parts in _rows(history):
        table.add_row(what, str(number), _listed(parts))
    broken = Counter(violation.guarantee for violation in violations)
    table.add_row("violations", str(len(violations) or "none"), _listed(broken), style="bold")
    console.print(table)
    for violation in violations[:_SHOWN]:
        console.print(str(violation), markup=False, highlight=False)
    if len(violations) > _SHOWN:
        console.print(f"and {len(violations) - _SHOWN} more")


_SHOWN = 20


def _listed(parts: Counter[str]) -> str:
    return ", ".join(f"{number} {name}" for name, number in parts.most_common())


def _title(history: History) -> str:
    for run in history.of(Run):
        return (
            f"{run.replicas} on {run.database}, {run.jobs} jobs, {run.seconds:g} s, seed {run.seed}"
        )
    return "no run"


def _rows(history: History) -> Iterator[tuple[str, int, Counter[str]]]:
    faults = Counter(fault.fault for fault in history.of(Fault))
    yield "faults", faults.total(), faults
    asked = Counter(str(asked.method) for asked in history.of(Asked))
    yield "requests sent", asked.total(), asked
    yield "requests answered OK", len(history.of(Answered)), Counter()
    failed = Counter(each.reason or each.code for each in history.of(Failed))
    yield "requests answered with an error", failed.total(), failed
    updates = Counter(update.state for update in history.of(StoredUpdate))
    yield "updates in the store", updates.total(), updates
    again = sum(len(update.reapplied) for update in history.of(StoredUpdate))
    yield "updates applied again", again, Counter()
    yield "sessions", len(history.of(Welcomed)), Counter()
    told = Counter(str(each.outcome.result) for each in history.of(TrainerSettled))
    yield "outcomes told by trainers", told.total(), told
    wire = Counter(
        delivered=len(history.of(Delivered)),
        told=len(history.of(Told)),
        acknowledged=len(history.of(Acknowledged)),
    )
    yield "messages of sessions", wire.total(), wire
    yield "looks at values in force", len(history.of(InForce)), Counter()
    yield "events in the store", len(history.of(StoredEvent)), Counter()
    yield "events watched", len(history.of(Watched)), Counter()
    yield "watches begun", len(history.of(WatchBegan)), Counter()
