"""Draws what the change did, as a file."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from midcourse.control.v1 import control_pb2

_WINDOW = 5
_CURVE = "#1f6feb"
_MARK = "#d9480f"


def draw(
    directory: Path,
    name: str,
    title: str,
    metric: control_pb2.Series,
    rate: control_pb2.Series,
    change_step: int,
    caption: str,
) -> list[Path]:
    """Draws a metric above the learning rate, with the change marked, and returns the files.

    Args:
        directory: Where the files go; made if it is not there.
        name: Their name without a suffix.
        title: Above the picture.
        metric: What shows whether the model learns.
        rate: The learning rate.
        change_step: First optimizer step that used the new learning rate.
        caption: What is said about the change.
    """
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib import pyplot as plt

    figure, (above, below) = plt.subplots(
        2, 1, sharex=True, figsize=(8, 5), height_ratios=(3, 2), layout="constrained"
    )
    figure.suptitle(title, fontsize=11)
    above.plot(metric.steps, metric.values, color=_CURVE, alpha=0.3, linewidth=1)
    above.plot(metric.steps, moving_average(metric.values, _WINDOW), color=_CURVE, linewidth=2)
    above.set_ylabel(metric.name)
    below.step(rate.steps, rate.values, where="mid", color=_CURVE, linewidth=2)
    below.set_ylabel(rate.name.replace("_", " "))
    below.set_xlabel("optimizer step")
    below.set_ylim(bottom=0)
    below.ticklabel_format(axis="y", style="sci", scilimits=(0, 0))
    for axes in (above, below):
        axes.axvline(change_step, color=_MARK, linestyle="--", linewidth=1.2)
        axes.spines[["top", "right"]].set_visible(False)
        axes.margins(x=0.01)
    above.annotate(
        caption,
        xy=(change_step, 1),
        xycoords=("data", "axes fraction"),
        xytext=(0, 4),
        textcoords="offset points",
        ha="left",
        va="bottom",
        fontsize=9,
        color=_MARK,
    )
    directory.mkdir(parents=True, exist_ok=True)
    files = [directory / f"{name}.png", directory / f"{name}.svg"]
    for file in files:
        figure.savefig(file, dpi=150)
    plt.close(figure)
    return files


def moving_average(values: Sequence[float], window: int) -> list[float]:
    """Returns the mean of each value and those before it; NaN and infinite ones are left out.

    It looks back only: a curve must not move before what moves it. Where there is nothing to take
    the mean of, it is NaN.

    Args:
        values: The values.
        window: How many each mean is taken of, at most.
    """
    means = []
    for end in range(1, len(values) + 1):
        near = [value for value in values[max(0, end - window) : end] if math.isfinite(value)]
        means.append(sum(near) / len(near) if near else math.nan)
    return means
