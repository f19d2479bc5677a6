"""Plots in the terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import plotext

from control_plane.cli import describe, printable
from control_plane.cli import format as fmt
from control_plane.cli.courses import finite
from midcourse.control.v1 import control_pb2, update_pb2

_HEIGHT = 14
_TICKS = 5
_CURVE = "cyan"
_MARK = "orange"
_GROUND = "default"


def draw(
    series: Sequence[control_pb2.Series],
    applied: Sequence[update_pb2.Update],
    *,
    width: int,
    colour: bool,
) -> Iterator[str]:
    """Yields the lines of one plot for each series, and of a legend of the updates in them.

    Args:
        series: What to draw.
        applied: Updates in force, marked by a dotted line at their first step.
        width: Columns to fill.
        colour: Whether the terminal has colours.
    """
    shown: dict[int, update_pb2.Update] = {}
    for one in series:
        steps, values = finite(one)
        name = printable.line(one.name)
        if not steps:
            yield f"{name}: no finite samples"
            continue
        marks = {update.revision: update for update in applied if _in(update.applied.step, steps)}
        shown |= marks
        yield from _plot(name, steps, values, list(marks.values()), width, colour)
        if one.statistics.non_finite_count:
            yield f"{name}: {one.statistics.non_finite_count} NaN or infinite samples left out"
        if one.reduced:
            yield f"{name}: {one.statistics.count} samples, thinned out; spikes are kept"
    for _, update in sorted(shown.items()):
        changed = ", ".join(describe.changes(update))
        yield printable.line(f"#{update.revision} at step {update.applied.step}: {changed}")


def _in(step: int, steps: Sequence[int]) -> bool:
    return steps[0] <= step <= steps[-1]


def _plot(
    name: str,
    steps: list[int],
    values: list[float],
    marks: list[update_pb2.Update],
    width: int,
    colour: bool,
) -> list[str]:
    figure = plotext.figure  # the library has this one, for the process
    figure.clear()
    figure.theme("colorless")
    figure.plot_size(width, _HEIGHT)
    figure.title(f"{name} by step")
    curve = figure.signal(steps, values, marker=plotext.marker("hd", plotext.pixel(_CURVE)))
    curve.lines()
    figure.draw(curve)
    for update in marks:
        figure.line(
            update.applied.step, "vertical", style="dotted", pixel=plotext.pixel(_MARK, _GROUND)
        )
    _label(figure, marks)
    _ticks(figure, steps, values)
    text = str(figure.build())
    if not colour:
        text = plotext.uncolorize(text)
    return [line.rstrip() for line in text.splitlines()]


def _label(figure: Any, marks: list[update_pb2.Update]) -> None:
    """Writes the revisions above their lines."""
    labels: dict[int, str] = {}
    for update in marks:
        step = update.applied.step
        labels[step] = (
            f"{labels[step]} #{update.revision}" if step in labels else f"#{update.revision}"
        )
    if labels:
        figure.ruler("x", "upper").ticks(list(labels), list(labels.values()))


def _ticks(figure: Any, steps: list[int], values: list[float]) -> None:
    low, high = min(values), max(values)
    at = sorted({low + (high - low) * n / (_TICKS - 1) for n in range(_TICKS)})
    figure.ruler("y", "left").ticks(at, [fmt.number(value, 3) for value in at])
    first, last = steps[0], steps[-1]
    whole = sorted({round(first + (last - first) * n / (_TICKS - 1)) for n in range(_TICKS)})
    figure.ruler("x", "lower").ticks(whole, [str(step) for step in whole])
