"""Rows of the benchmark table, and how they are shown and kept."""

from __future__ import annotations

import json
import os
import platform
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

QUIET = 0.8
"""Share of the processors that has to be free before and after a part for a miss to count."""

MET, NOT_MET, NOT_JUDGED, FAILED = "met", "not met", "not judged", "failed"


@dataclass(frozen=True)
class Row:
    """One figure against its floor and its peer, measured in the same run.

    Attributes:
        what: What was measured.
        unit: Unit of `floor`, `peer`, `ours` and `goal`.
        floor: What cannot be avoided; None: there is none.
        ours: Ours; None: `failure` tells why it is not known.
        goal: The most that ours may be; None: the row is there to compare.
        note: How `goal` follows from the floor, and what else there is to know.
        peer: The same by the usual alternative; None: there is none.
        at_least: The goal is the least that ours may be.
        failure: Why the figure is not known.
        part: The part of the benchmark that measured it.
        load: Load average when the part began.
        free: Share of the processors that was free before and after the part, the lesser one.
    """

    what: str
    unit: str
    floor: float | None
    ours: float | None
    goal: float | None = None
    note: str = ""
    peer: float | None = None
    at_least: bool = False
    failure: str = ""
    part: str = ""
    load: float | None = None
    free: float | None = None

    @property
    def met(self) -> bool:
        """Whether the goal is met."""
        return self._reaches(self.ours)

    @property
    def ratio(self) -> float | None:
        """Ours to the floor, else to the peer."""
        base = self.floor if self.floor is not None else self.peer
        return self.ours / base if self.ours is not None and base else None

    @property
    def verdict(self) -> tuple[str, str]:
        """What the figure says of the goal, and why where it says nothing."""
        if self.failure:
            return FAILED, self.failure
        if self.goal is None:
            return NOT_JUDGED, "there to compare"
        if self.met:
            return MET, ""
        if self.floor is not None and not self._reaches(self.floor):
            return NOT_JUDGED, "the floor itself misses it"
        if self.free is not None and self.free < QUIET:
            return NOT_JUDGED, f"only {self.free:.0%} of the processors were free"
        return NOT_MET, ""

    def _reaches(self, figure: float | None) -> bool:
        if figure is None or self.goal is None:
            return False
        return figure >= self.goal if self.at_least else figure <= self.goal


@dataclass(frozen=True)
class Hop:
    """A stretch of a live update's way, of the middle one and of the slowest of a hundred."""

    what: str
    p50: float
    p99: float


def this_machine() -> str:
    """The processors, the system and Python, in words."""
    return (
        f"{os.cpu_count()} processors ({platform.machine()}), {platform.system()}, "
        f"Python {platform.python_version()}"
    )


@dataclass(frozen=True)
class Report:
    """One run.

    Attributes:
        rows: The table.
        hops: Where the time of a live update goes, in milliseconds.
        taken: When it was begun.
        machine: What it ran on.
        quick: Whether it was the quick variant.
    """

    rows: Sequence[Row]
    hops: Sequence[Hop] = ()
    taken: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    machine: str = field(default_factory=this_machine)
    quick: bool = False

    def write(self, path: Path) -> None:
        """Writes it as JSON."""
        document = {
            **asdict(self),
            "rows": [
                {**asdict(row), "verdict": row.verdict[0], "why": row.verdict[1]}
                for row in self.rows
            ],
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n")

    @staticmethod
    def read(path: Path) -> Report:
        """Reads what was written."""
        document = json.loads(path.read_text())
        return Report(
            rows=[_of(Row, row) for row in document["rows"]],
            hops=[_of(Hop, hop) for hop in document["hops"]],
            **{name: document[name] for name in ("taken", "machine", "quick")},
        )


def _of(kind: Any, values: dict[str, Any]) -> Any:
    known = {each.name for each in fields(kind)}
    return kind(**{name: value for name, value in values.items() if name in known})


def percentile(values: Sequence[float], percent: float) -> float:
    """A percentile, by linear interpolation."""
    if percent == 50:
        return statistics.median(values)
    ranked = sorted(values)
    position = (len(ranked) - 1) * percent / 100
    low = int(position)
    high = min(low + 1, len(ranked) - 1)
    return ranked[low] + (ranked[high] - ranked[low]) * (position - low)


def figure(value: float | None, unit: str) -> str:
    """A figure with its unit, to three digits."""
    if value is None:
        return "–"
    digits = f"{value:,.0f}" if abs(value) >= 1_000 else f"{value:.3g}"
    return f"{digits} {unit}".rstrip()


def cells(row: Row) -> tuple[str, ...]:
    """The columns of a row: what, floor, peer, ours, ratio, goal, verdict."""
    verdict, why = row.verdict
    goal = figure(row.goal, row.unit)
    return (
        row.what,
        figure(row.floor, row.unit),
        figure(row.peer, row.unit),
        figure(row.ours, row.unit),
        "–" if row.ratio is None else f"{row.ratio:.3g} ×",
        goal if row.goal is None else f"{'≥' if row.at_least else '≤'} {goal}",
        f"{verdict}: {why}" if why else verdict,
    )


COLUMNS = ("what", "floor", "peer", "ours", "ratio", "goal", "")


def present(rows: Iterable[Row], console: Console | None = None) -> None:
    """Prints the table."""
    colours = {MET: "green", NOT_MET: "red", NOT_JUDGED: "yellow", FAILED: "red"}
    table = Table(title="Benchmarks")
    for name in COLUMNS:
        table.add_column(name, justify="left" if name in ("what", "") else "right")
    for row in rows:
        *figures, verdict = cells(row)
        note = f"\n[dim]{row.note}[/dim]" if row.note else ""
        table.add_row(*figures, f"[{colours[row.verdict[0]]}]{verdict}[/]{note}")
    (console or Console(width=170)).print(table)


def show(rows: Sequence[Row], path: Path) -> None:
    """Prints the table and writes the same as JSON."""
    present(rows)
    Report(rows).write(path)
