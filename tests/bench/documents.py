"""What docs/performance.md shows of a run: the tables between its markers, and the plot."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.bench.report import (
    COLUMNS,
    FAILED,
    MET,
    NOT_JUDGED,
    NOT_MET,
    Hop,
    Report,
    Row,
    cells,
    figure,
)
from tests.support.processes import ROOT

PAGE = ROOT / "docs" / "performance.md"
PLOT = "performance.svg"
COLOURS = {MET: "#2a9d6f", NOT_MET: "#d1495b", NOT_JUDGED: "#8d99ae", FAILED: "#d1495b"}
FLOOR, PEER, INK, FAINT = "#264653", "#e9a23b", "#22272e", "#d7dce2"
FARTHEST = 30.0
"""Figures that are so many times the goal, or so small a part of it, are drawn at the edge."""


def renew(report: Report, page: Path = PAGE) -> None:
    """Puts the tables between the markers of a page, and the plot beside it.

    Raises:
        ValueError: The page lacks a marker.
    """
    text = page.read_text()
    for name, made in (("table", table(report)), ("hops", hops(report.hops))):
        if made:
            text = between(text, name, made)
    page.write_text(text)
    plot(report, page.with_name(PLOT))


def between(text: str, name: str, made: str) -> str:
    """The text with what was made between the two markers of that name.

    Raises:
        ValueError: A marker is missing.
    """
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    pattern = re.compile(f"{re.escape(begin)}.*{re.escape(end)}", re.DOTALL)
    if not pattern.search(text):
        raise ValueError(f"the page has no {begin} … {end}")
    return pattern.sub(lambda _: f"{begin}\n\n{made}\n\n{end}", text)


def table(report: Report) -> str:
    """The table in Markdown, with what it was measured on."""
    loads = [row.load for row in report.rows if row.load is not None]
    free = [row.free for row in report.rows if row.free is not None]
    told = f"Taken {report.taken} on {report.machine}"
    if loads and free:
        told += (
            f"; load average from {min(loads):.1f} to {max(loads):.1f} before the parts, "
            f"and at least {min(free):.0%} of the processors free beside them"
        )
    told += ". The quick variant." if report.quick else "."
    lines = [told, "", _line(COLUMNS), _line(["---", *["--:"] * (len(COLUMNS) - 2), "---"])]
    for row in report.rows:
        *figures, verdict = cells(row)
        lines.append(_line([*figures, f"{_verdict(verdict)}{'. ' if row.note else ''}{row.note}"]))
    return "\n".join(lines)


def _verdict(verdict: str) -> str:
    word, colon, why = verdict.partition(":")
    return f"**{word}**{colon}{why}"


def hops(stretches: Sequence[Hop]) -> str:
    """The profile in Markdown; empty: there is none."""
    if not stretches:
        return ""
    lines = [_line(["stretch", "p50", "p99"]), _line(["---", "--:", "--:"])]
    lines += [_line([hop.what, figure(hop.p50, "ms"), figure(hop.p99, "ms")]) for hop in stretches]
    return "\n".join(lines)


def _line(columns: Sequence[str]) -> str:
    return f"| {' | '.join(column.replace('|', chr(92) + '|') for column in columns)} |"


def drawn(row: Row) -> bool:
    """Whether there is something to draw: figures and a goal that they can be set against."""
    return bool(row.ours) and bool(row.goal)


def times_goal(row: Row, value: float | None) -> float | None:
    """A figure in goals, so that less is better; None: there is none."""
    if not value or not row.goal:
        return None
    times = row.goal / value if row.at_least else value / row.goal
    return min(max(times, 1 / FARTHEST), FARTHEST)


def plot(report: Report, path: Path) -> None:
    """Draws each figure, its floor and its peer against its goal."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    rows = [row for row in report.rows if drawn(row)]
    if not rows:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    # The same figures make the same file, and its words can be searched.
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "midcourse"}):
        _draw_all(Figure, report, rows).savefig(
            path, metadata={"Date": None} if path.suffix == ".svg" else None, dpi=110
        )


def _draw_all(figure_type: Any, report: Report, rows: Sequence[Row]) -> Any:
    height = 0.34 * len(rows) + 1.7
    canvas = figure_type(figsize=(12.5, height), facecolor="white")
    axes = canvas.add_axes((0.41, 0.62 / height, 0.36, 1 - 1.55 / height))
    axes.set_xscale("log")
    axes.set_xlim(1 / FARTHEST / 1.3, FARTHEST * 1.3)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.axvspan(1, FARTHEST * 1.3, color="#d1495b", alpha=0.05, linewidth=0)
    axes.axvspan(1 / FARTHEST / 1.3, 1, color="#2a9d6f", alpha=0.05, linewidth=0)
    axes.axvline(1, color=INK, linewidth=1.2)
    for place, row in enumerate(rows):
        _draw(axes, place, row, first=place == 0 or rows[place - 1].part != row.part)
    ticks = [1 / 30, 0.1, 0.3, 1, 3, 10, 30]
    names = ["1/30", "1/10", "1/3", "the goal", "3 ×", "10 ×", "30 ×"]
    axes.set_xticks(ticks, names, fontsize=9, color=INK)
    axes.minorticks_off()
    axes.tick_params(axis="x", length=0)
    axes.set_yticks([])
    axes.grid(axis="x", color=FAINT, linewidth=0.7)
    axes.set_axisbelow(True)
    for side in axes.spines.values():
        side.set_visible(False)
    _caption(canvas, report, height)
    return canvas


def _draw(axes: Any, place: int, row: Row, *, first: bool) -> None:
    verdict = row.verdict[0]
    colour = COLOURS[verdict]
    ours = times_goal(row, row.ours)
    if first:
        axes.plot(
            [-1.16, 1.62],
            [place - 0.5] * 2,
            transform=axes.get_yaxis_transform(),
            color=FAINT,
            linewidth=0.8,
            clip_on=False,
        )
    axes.plot([1, ours], [place, place], color=colour, linewidth=2.4, alpha=0.55)
    for value, mark, tint in ((row.floor, "d", FLOOR), (row.peer, "^", PEER)):
        times = times_goal(row, value)
        if times is not None:
            axes.plot(times, place, mark, color=tint, markersize=6.5, zorder=4, alpha=0.9)
    axes.plot(ours, place, "o", color=colour, markersize=9, zorder=5, markeredgecolor="white")
    at = {"transform": axes.get_yaxis_transform(), "va": "center", "fontsize": 9}
    axes.text(-0.02, place, row.what, ha="right", color=INK, **at)
    axes.text(1.03, place, figure(row.ours, row.unit), ha="left", color=colour, weight="bold", **at)
    goal = f"{'≥' if row.at_least else '≤'} {figure(row.goal, row.unit)}"
    axes.text(1.30, place, goal, ha="left", color="#6b7480", **at)
    if verdict != MET:
        axes.text(1.62, place, verdict, ha="right", color=colour, **at)


def _caption(canvas: Any, report: Report, height: float) -> None:
    canvas.text(
        0.02,
        1 - 0.38 / height,
        "Midcourse against its goals",
        fontsize=15,
        weight="bold",
        color=INK,
    )
    canvas.text(
        0.02,
        1 - 0.68 / height,
        f"{report.taken[:10]} · {report.machine}{' · quick variant' if report.quick else ''}",
        fontsize=9,
        color="#6b7480",
    )
    legend = (("o", COLOURS[MET], "ours"), ("d", FLOOR, "floor"), ("^", PEER, "alternative"))
    axes = canvas.add_axes((0.60, 1 - 0.78 / height, 0.38, 0.5 / height))
    axes.set_axis_off()
    axes.set_xlim(0, 10)
    axes.set_ylim(0, 1)
    for number, (mark, colour, name) in enumerate(legend):
        axes.plot(0.4 + 2.0 * number, 0.5, mark, color=colour, markersize=8)
        axes.text(0.7 + 2.0 * number, 0.5, name, va="center", fontsize=9, color=INK)
    axes.text(9.9, 0.5, "← better", va="center", ha="right", fontsize=9, color=COLOURS[MET])
