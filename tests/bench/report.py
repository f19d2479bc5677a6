"""Rows of the benchmark table, and how they are shown and kept."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table


@dataclass(frozen=True)
class Row:
    """One figure against its floor or peer, measured in the same run.

    Attributes:
        what: What was measured.
        unit: Unit of `floor`, `ours` and `goal`.
        floor: The floor or the peer.
        ours: Ours.
        goal: The most that ours may be.
        note: How `goal` follows from the floor.
    """

    what: str
    unit: str
    floor: float | None
    ours: float
    goal: float
    note: str = ""

    @property
    def met(self) -> bool:
        """Whether the goal is met."""
        return self.ours <= self.goal


def percentile(values: Sequence[float], percent: float) -> float:
    """A percentile, by linear interpolation."""
    if percent == 50:
        return statistics.median(values)
    ranked = sorted(values)
    position = (len(ranked) - 1) * percent / 100
    low = int(position)
    high = min(low + 1, len(ranked) - 1)
    return ranked[low] + (ranked[high] - ranked[low]) * (position - low)


def show(rows: Sequence[Row], path: Path) -> None:
    """Prints the table and writes the same as JSON."""
    table = Table(title="Benchmarks")
    for name in ("what", "floor", "ours", "ratio", "goal", ""):
        table.add_column(name, justify="left" if name in ("what", "") else "right")
    for row in rows:
        ratio = f"{row.ours / row.floor:.2f} ×" if row.floor else "–"
        floor = f"{row.floor:.3g} {row.unit}" if row.floor is not None else "–"
        table.add_row(
            row.what,
            floor,
            f"{row.ours:.3g} {row.unit}",
            ratio,
            f"≤ {row.goal:.3g} {row.unit}",
            f"{'met' if row.met else 'NOT MET'}  {row.note}",
        )
    Console(width=150).print(table)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps([{**asdict(row), "met": row.met} for row in rows], indent=2) + "\n")
