"""Tables of the course of metrics."""

from __future__ import annotations

import math
from collections.abc import Sequence

from control_plane.cli import describe
from control_plane.cli import format as fmt
from control_plane.cli.fitting import FittingTable
from midcourse.control.v1 import control_pb2, update_pb2


def samples(
    series: Sequence[control_pb2.Series], applied: Sequence[update_pb2.Update]
) -> FittingTable:
    """Returns one row for each step with a sample, and the updates in force since the last row."""
    names = [one.name for one in series]
    most_wanted = "loss" if "loss" in names else names[0]
    table = FittingTable(
        *("STEP", *names, "UPDATE"),
        right=("STEP", *names),
        wrap={"UPDATE": 16},
        leave_out=[name for name in reversed(names) if name != most_wanted],
        say_so=True,
    )
    columns = [dict(zip(one.steps, one.values, strict=True)) for one in series]
    steps = sorted(set().union(*columns))
    marks = _marks(steps, applied)
    for step in steps:
        values = (fmt.number(column.get(step)) for column in columns)
        table.add_row(str(step), *values, marks.get(step, ""))
    return table


def _marks(steps: Sequence[int], applied: Sequence[update_pb2.Update]) -> dict[int, str]:
    """Returns a note for each step that is the first with a sample under an update."""
    marks: dict[int, list[str]] = {}
    for update in sorted(applied, key=lambda one: one.revision):
        row = next((step for step in steps if step >= update.applied.step), None)
        if row is not None and steps and update.applied.step >= steps[0]:
            changed = ", ".join(describe.changes(update))
            where = "" if row == update.applied.step else f" from step {update.applied.step}"
            marks.setdefault(row, []).append(f"#{update.revision} {changed}{where}")
    return {step: "\n".join(notes) for step, notes in marks.items()}


def statistics(series: Sequence[control_pb2.Series]) -> FittingTable:
    """Returns what the control plane worked out about each series."""
    headers = ("COUNT", "NEWEST", "LEAST", "MOST", "MEAN", "SLOPE/STEP", "NAN")
    gives_way = ("MEAN", "SLOPE/STEP", "LEAST", "MOST")
    table = FittingTable("METRIC", *headers, right=headers, leave_out=gives_way)
    for one in series:
        known = one.statistics
        table.add_row(
            one.name,
            str(known.count),
            *(
                fmt.number(getattr(known, field) if known.HasField(field) else None, 3)
                for field in ("last", "minimum", "maximum", "mean", "slope")
            ),
            str(known.non_finite_count),
        )
    return table


def finite(series: control_pb2.Series) -> tuple[list[int], list[float]]:
    """Returns the steps and values of a series without NaN and infinities."""
    pairs = [
        (step, value)
        for step, value in zip(series.steps, series.values, strict=True)
        if math.isfinite(value)
    ]
    return [step for step, _ in pairs], [value for _, value in pairs]
