"""What may grow by how much, the table, the file and the picture."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from tests.soak.judging import Trend, Verdict, trend
from tests.soak.measuring import Courses

MEGA = 1e6

SERVICES = ("control plane", "analytics")


def _of(services: Sequence[str], names: Sequence[str], bound: float) -> dict[str, float]:
    return {f"{service}: {name}": bound for service in services for name in names}


_CACHED = (32 + 3 * 8) * 2**20
"""What connections keep of a file at most (grpc_runtime.sql.sqlite), and reach once it has grown
to that: which takes longer than a soak, as what it holds by design is little."""

BOUNDS: Mapping[str, float] = {
    **_of(SERVICES, ["memory"], 50 * MEGA + _CACHED),
    **_of(SERVICES, ["files"], 100),
    **_of(SERVICES, ["threads"], 20),
    **_of(SERVICES, ["tasks"], 200),
    **_of(SERVICES[:1], ["sessions", "watches"], 200),
    **_of(SERVICES[:1], ["messages for agents", "samples waiting", "transactions waiting"], 1_000),
    **_of(SERVICES[:1], ["database in use"], 200 * MEGA),
    **_of(SERVICES, ["write-ahead log"], 200 * MEGA),
    **_of(
        SERVICES[:1],
        [f"table {name}" for name in ("jobs", "telemetry", "series", "replicas", "batch_refusals")],
        1_000,
    ),
    **_of(SERVICES[:1], ["table samples", "table events", "table audit_records"], 100_000),
    **_of(SERVICES[:1], ["table tokens"], 1_000),
    **_of(SERVICES[1:], ["table sessions", "table messages", "table requests"], 10_000),
    **_of(SERVICES[1:], ["table audit_records"], 10_000),
    **_of(SERVICES[1:], ["table replicas", "table budgets", "table budget_windows"], 100),
}
"""What each may grow by in a day, on files."""

ON_POSTGRES: Mapping[str, float] = {
    **{name: most for name, most in BOUNDS.items() if not name.endswith(("in use", "-ahead log"))},
    **_of(SERVICES, ["memory"], 50 * MEGA),
    "control plane: database": 200 * MEGA,
}
"""The same on PostgreSQL, which has a log of its own and uses again what is free."""

BY_DESIGN: Mapping[str, str] = {
    "control plane: table updates": "kept as long as their job",
    "control plane: table runs": "one row for each training process, kept as long as its job",
    "control plane: table batches": "one row for each batch",
    "analytics: table usage": "one row for each call of a model; the present month is kept",
}
"""What grows with what is done, and why."""


@dataclass(frozen=True, slots=True)
class Judgement:
    """What was found of one course.

    Attributes:
        name: Of the course.
        unit: Of the values.
        middle: The value at half time.
        last: The value at the end.
        trend: How it grows; None: there was too little.
        bound: The most that it may grow in a day; None: it is not judged.
        verdict: What that comes to; None: it is not judged.
        note: Why it is not.
    """

    name: str
    unit: str
    middle: float
    last: float
    trend: Trend | None
    bound: float | None
    verdict: Verdict | None
    note: str = ""


def check_measured(courses: Courses, *, postgres: bool) -> None:
    """Makes sure that everything is measured that has a bound.

    Raises:
        ValueError: Something is not.
    """
    bounds = ON_POSTGRES if postgres else BOUNDS
    if missing := bounds.keys() - courses.values.keys():
        raise ValueError(f"there are bounds for what was not measured: {sorted(missing)}")


def judge(courses: Courses, *, postgres: bool) -> list[Judgement]:
    """Judges everything that was measured."""
    bounds = ON_POSTGRES if postgres else BOUNDS
    found = []
    for name, values in sorted(courses.values.items()):
        bound = bounds.get(name)
        slope = trend(courses.seconds, values)
        verdict = None
        if bound is not None:
            verdict = Verdict.UNCLEAR if slope is None else slope.against(bound)
        found.append(
            Judgement(
                name,
                courses.units[name],
                values[len(values) // 2],
                values[-1],
                slope,
                bound,
                verdict,
                BY_DESIGN.get(name, ""),
            )
        )
    return found


def _number(value: float, unit: str) -> str:
    if unit == "bytes":
        return f"{value / MEGA:,.1f} MB"
    return f"{value:,.1f}".removesuffix(".0")


def show(
    judgements: Sequence[Judgement],
    done: Mapping[str, int],
    errors: Mapping[str, int],
    console: Console,
) -> None:
    """Prints the table."""
    table = Table(title="Soak: growth in the second half, as of a day")
    for name in ("what", "at half time", "at the end", "a day (95 %)", "may grow", ""):
        table.add_column(name, justify="left" if name in ("what", "") else "right")
    for each in judgements:
        by = "–"
        if each.trend is not None:
            low, high = (_number(x, each.unit) for x in (each.trend.low, each.trend.high))
            by = f"{low} … {high}"
        style = {Verdict.GROWS: "bold red", Verdict.UNCLEAR: "yellow"}.get(
            each.verdict or Verdict.BOUNDED, ""
        )
        table.add_row(
            each.name,
            _number(each.middle, each.unit),
            _number(each.last, each.unit),
            by,
            "–" if each.bound is None else _number(each.bound, each.unit),
            each.verdict.value if each.verdict else each.note,
            style=style,
        )
    console.print(table)
    console.print("done: " + ", ".join(f"{name} {n:,}" for name, n in sorted(done.items())))
    for error, count in errors.items():
        console.print(f"{count} ×  {error}", style="red", markup=False)


def write(
    path: Path,
    courses: Courses,
    judgements: Sequence[Judgement],
    setup: Mapping[str, Any],
    done: Mapping[str, int],
    errors: Mapping[str, int],
) -> None:
    """Writes all of it as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    found = {
        "setup": setup,
        "done": done,
        "errors": errors,
        "judgements": [asdict(each) for each in judgements],
        "seconds": [round(second, 2) for second in courses.seconds],
        "courses": courses.values,
    }
    path.write_text(json.dumps(found, indent=1) + "\n")


PICTURE: Sequence[tuple[str, str]] = (
    ("memory, MB", r": memory$"),
    ("open files", r": files$"),
    ("tasks", r": tasks$"),
    ("threads", r": threads$"),
    ("queues", r": (messages for agents|samples waiting|transactions waiting)$"),
    ("sessions and watches", r": (sessions|watches)$"),
    ("database, MB", r": (database|database in use|write-ahead log)$"),
    (
        "rows that are kept for some time",
        r": table (samples|events|audit_records|messages|tokens)$",
    ),
    ("rows that go with their job or session", r": table (jobs|runs|series|updates|sessions)$"),
    ("rows that grow by design", r": table (batches|usage)$"),
    ("update accepted, ms", r"^update accepted"),
)


def draw(path: Path, courses: Courses, judgements: Sequence[Judgement]) -> None:
    """Draws the courses, what grows too fast dashed; the second half is what is judged."""
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib import pyplot as plt

    minutes = [second / 60 for second in courses.seconds]
    grows = {each.name for each in judgements if each.verdict is Verdict.GROWS}
    rows = (len(PICTURE) + 1) // 2
    figure, axes = plt.subplots(
        rows, 2, sharex=True, figsize=(12, 2.4 * rows), layout="constrained"
    )
    for (title, pattern), ax in zip(PICTURE, axes.flat, strict=False):
        for name, values in sorted(courses.values.items()):
            if re.search(pattern, name):
                scale = MEGA if courses.units[name] == "bytes" else 1
                ax.plot(
                    minutes,
                    [value / scale for value in values],
                    label=name.removeprefix("control plane: "),
                    linewidth=1.2,
                    linestyle="--" if name in grows else "-",
                )
        ax.set_title(title, fontsize=10)
        ax.set_ylim(bottom=0)
        ax.axvspan(minutes[-1] / 2, minutes[-1], color="#1f6feb", alpha=0.06)
        ax.spines[["top", "right"]].set_visible(False)
        if ax.lines:
            ax.legend(fontsize=7, frameon=False, loc="lower right")
    for ax in axes[-1]:
        ax.set_xlabel("minutes")
    for ax in list(axes.flat)[len(PICTURE) :]:
        ax.set_visible(False)
    figure.savefig(path)
    figure.savefig(path.with_suffix(".png"), dpi=110)
    plt.close(figure)
