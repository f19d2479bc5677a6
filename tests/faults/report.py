"""A table of what a history holds, and of the violations in it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

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
    Missed,
    Quiet,
    Run,
    Saved,
    StoredEvent,
    StoredJob,
    StoredUpdate,
    Told,
    TrainerBegan,
    TrainerSettled,
    WatchBegan,
    Watched,
    WatchEnded,
    Welcomed,
)
from tests.faults.violations import Violation

if TYPE_CHECKING:
    from tests.faults.campaign import Tally

UNEXPECTED = ("INTERNAL", "UNKNOWN", "DATA_LOSS", "UNIMPLEMENTED")
"""Codes that no caller should ever see."""


PASSING = ("OK", "UNAVAILABLE", "DEADLINE_EXCEEDED", "CANCELLED")
"""Codes that a watch may end with, whatever is broken."""


def unexpected(history: History) -> list[Failed | WatchEnded]:
    """Errors that no fault excuses."""
    failed = [each for each in history.of(Failed) if each.code in UNEXPECTED]
    return [*failed, *(each for each in history.of(WatchEnded) if each.code not in PASSING)]


def lacking(history: History) -> list[str]:
    """What a history does not have without which it shows nothing, in words."""
    there = {
        "it did not come to rest": any(history.of(Quiet)),
        "nobody looked into the store": any(history.of(StoredJob)),
        "no update was applied": any(each.state == "applied" for each in history.stored.values()),
        "no watcher was told of anything": any(
            each.position is not None and each.event != "bookmark" for each in history.of(Watched)
        ),
    }
    return [f"nothing to tell from: {what}" for what, is_there in there.items() if not is_there]


def done(history: History) -> Counter[str]:
    """Faults by kind, without those that have met nothing."""
    tried = Counter(each.fault for each in history.of(Fault))
    return tried - Counter(each.fault for each in history.of(Missed))


def late_lies(history: History) -> int:
    """How often an impostor has said how an update ended once its job had a newer session."""
    lies, newest = 0, Counter[str]()
    for record in history.records:
        match record:
            case Welcomed():
                job = history.job_of(record.session)
                newest[job] = max(newest[job], record.epoch)
            case Told() if history.hellos[record.session].impostor:
                epoch = history.epochs.get(record.session)
                lies += epoch is not None and epoch < newest[history.job_of(record.session)]
            case _:
                pass
    return lies


def begun(history: History) -> Counter[str]:
    """How training processes began."""
    return Counter(
        "gone back to a checkpoint"
        if each.roll_back
        else "from a checkpoint"
        if each.checkpoint
        else "anew"
        for each in history.of(TrainerBegan)
    )


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


def show_tally(tally: Tally, seconds: float, commands: Sequence[str], console: Console) -> None:
    """Prints what came of many runs, and how to have again those that were not well."""
    table = Table(title="schedules of faults", title_justify="left")
    table.add_column("what")
    table.add_column("number", justify="right")
    table.add_column("of which")
    table.add_row("schedules", str(tally.runs), "")
    table.add_row("faults", str(tally.faults.total()), _listed(tally.faults))
    table.add_row("faults that met nothing", str(tally.missed.total()), _listed(tally.missed))
    table.add_row("lies told late", str(tally.late_lies), "")
    table.add_row("updates", str(tally.updates.total()), _listed(tally.updates))
    table.add_row("training processes", str(tally.begun.total()), _listed(tally.begun))
    each = f"{tally.seconds / tally.runs:.1f} for each" if tally.runs else ""
    table.add_row("seconds", f"{seconds:.0f}", each)
    seeds = ", ".join(str(bad.setup.seed) for bad in tally.bad)
    violations = sum(len(bad.troubles) for bad in tally.bad)
    table.add_row("violations", str(violations or "none"), seeds and f"seeds {seeds}", style="bold")
    console.print(table)
    for command in commands:
        console.print(f"again: {command}", markup=False, highlight=False)


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
    faults = done(history)
    yield "faults", faults.total(), faults
    missed = Counter(each.fault for each in history.of(Missed))
    yield "faults that met nothing", missed.total(), missed
    yield "lies told late", late_lies(history), Counter()
    asked = Counter(asked.action or str(asked.method) for asked in history.of(Asked))
    yield "requests sent", asked.total(), asked
    yield "requests answered OK", len(history.of(Answered)), Counter()
    failed = Counter(each.reason or each.code for each in history.of(Failed))
    yield "requests answered with an error", failed.total(), failed
    updates = Counter(update.state for update in history.of(StoredUpdate))
    yield "updates in the store", updates.total(), updates
    again = sum(len(update.reapplied) for update in history.of(StoredUpdate))
    yield "updates applied again", again, Counter()
    yield "training processes", len(history.trainers), begun(history)
    yield "checkpoints saved", len(history.of(Saved)), Counter()
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
