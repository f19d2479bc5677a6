"""Reads the course of metrics, with numbers about it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, Final

from analytics_service.chat.conversation import Citation
from analytics_service.chat.fence import NAME_LENGTH, clipped
from analytics_service.chat.statistics import (
    BeforeAfter,
    Point,
    Spike,
    Stretch,
    Summary,
    before_after,
    points_of,
    summarize,
)
from analytics_service.chat.tools.arguments import MetricSeriesArguments
from analytics_service.chat.tools.tool import Reading, Tool
from analytics_service.chat.tools.values import number, without_absent
from control_plane.client import Client
from midcourse.control.v1 import control_pb2

EXAMINED_POINTS: Final = 4_000
"""Most samples of a metric that are looked at for spikes; more come reduced, spikes kept."""

SHOWN_POINTS: Final = 320
"""Most points that one call returns, all metrics together."""

MAX_SPIKES: Final = 10
DEFAULT_METRICS: Final = 4
_LEAST_POINTS: Final = 4

_TELLING: Final = (
    re.compile(r"(train[_/])?loss"),
    re.compile(r"eval.*loss"),
    re.compile(r".*loss.*"),
    re.compile(r"(train[_/])?rewards?(/mean)?"),
    re.compile(r".*reward(?!.*std).*"),
    re.compile(r"grad_norm"),
    re.compile(r".*(accuracy|perplexity|entropy|kl).*"),
)


def telling_metrics(names: Iterable[str], limit: int) -> list[str]:
    """The metrics that say most about how training goes, losses first.

    Where none of them is known, the first ones in the order of their names.
    """
    known = sorted(set(names))
    telling = [name for pattern in _TELLING for name in known if pattern.fullmatch(name)]
    return list(dict.fromkeys(telling))[:limit] or known[:limit]


def metric_series(client: Client, arguments: MetricSeriesArguments) -> Reading:
    """Reads metrics of a job."""
    asked = list(dict.fromkeys(arguments.metrics))
    known: list[str] | None = None
    if not asked:
        known = _names(client, arguments.job)
        asked = telling_metrics(known, DEFAULT_METRICS)
    examined = _query(client, arguments, asked, EXAMINED_POINTS) if asked else []
    found = {each.name for each in examined}
    missing = [name for name in asked if name not in found]
    result: dict[str, Any] = {"job": arguments.job}
    if missing or not asked:
        known = _names(client, arguments.job) if known is None else known
        result["no_samples_in_range"] = [clipped(each, NAME_LENGTH) for each in missing]
        result["metrics_of_the_job"] = [clipped(each, NAME_LENGTH) for each in known[:60]]
    share = max(_LEAST_POINTS, SHOWN_POINTS // max(1, len(examined)))
    shown = _thinned(client, arguments, examined, min(arguments.max_points, share))
    result["series"] = [
        _rendered(each, shown[each.name], arguments) for each in examined if each.steps
    ]
    citations = [
        Citation(arguments.job, "metric", each.name, each.steps[0], each.steps[-1])
        for each in examined
    ]
    return Reading(result, tuple(citations))


def _names(client: Client, job: str) -> list[str]:
    return sorted(each.name for each in client.get_job(job).metrics)


def _query(
    client: Client, arguments: MetricSeriesArguments, names: Iterable[str], max_points: int
) -> list[control_pb2.Series]:
    return client.query_metrics(
        arguments.job,
        list(names),
        first_step=arguments.first_step,
        last_step=arguments.last_step,
        max_points=max_points,
    )


def _thinned(
    client: Client,
    arguments: MetricSeriesArguments,
    examined: Iterable[control_pb2.Series],
    max_points: int,
) -> Mapping[str, control_pb2.Series]:
    """The series with few enough points to show: thinned out by the control plane, spikes kept."""
    shown = {each.name: each for each in examined}
    long = [name for name, each in shown.items() if len(each.steps) > max_points]
    if long:
        shown |= {each.name: each for each in _query(client, arguments, long, max_points)}
    return shown


def _rendered(
    series: control_pb2.Series, shown: control_pb2.Series, arguments: MetricSeriesArguments
) -> dict[str, Any]:
    summary = summarize(series)
    comparison = None
    if arguments.compare_step is not None:
        compared = before_after(points_of(series), arguments.compare_step, arguments.compare_window)
        comparison = _comparison(compared, summary)
    return without_absent(
        {
            "metric": clipped(series.name, NAME_LENGTH),
            "statistics": _statistics(summary),
            "comparison": comparison,
            "spikes_left_out": max(0, len(summary.spikes) - MAX_SPIKES) or None,
            "points_thinned_out": len(shown.steps) < summary.count or None,
        }
    ) | {
        # Said also where there are none: that nothing spiked is an answer.
        "spikes": [_spike(each) for each in _largest(summary.spikes)],
        "points": [[number(step), number(value)] for step, value in points_of(shown)],
    }


def _statistics(of: Summary) -> dict[str, Any]:
    return without_absent(
        {
            "count": number(of.count),
            **_place("first", of.first),
            **_place("last", of.last),
            **_place("minimum", of.minimum),
            **_place("maximum", of.maximum),
            "mean": None if of.mean is None else number(of.mean),
            "slope_per_step": None if of.slope is None else number(of.slope),
            "non_finite_count": number(of.non_finite_count),
            "first_non_finite_step": None
            if of.first_non_finite_step is None
            else number(of.first_non_finite_step),
            "exact": of.exact,
        }
    )


def _place(name: str, point: Point | None) -> dict[str, Any]:
    if point is None:
        return {}
    return {f"{name}_value": number(point.value), f"{name}_step": number(point.step)}


def _largest(spikes: tuple[Spike, ...]) -> list[Spike]:
    largest = sorted(spikes, key=lambda each: each.size, reverse=True)[:MAX_SPIKES]
    return sorted(largest, key=lambda each: each.start_step)


def _spike(of: Spike) -> dict[str, Any]:
    return {
        "direction": "up" if of.is_upward else "down",
        "start_step": number(of.start_step),
        "peak_step": number(of.peak_step),
        "peak_value": number(of.peak_value),
        "baseline_before": number(of.baseline),
        "end_step": None if of.end_step is None else number(of.end_step),
        "ending": of.ending.value,
    }


def _comparison(of: BeforeAfter, summary: Summary) -> dict[str, Any]:
    return {
        "step": number(of.step),
        "window": of.window,
        "before": _stretch(of.before),
        "after": _stretch(of.after),
        "exact": summary.exact,
    }


def _stretch(of: Stretch) -> dict[str, Any]:
    return {
        "count": of.count,
        "mean": None if of.mean is None else number(of.mean),
        "median": None if of.median is None else number(of.median),
    }


METRIC_SERIES: Final = Tool(
    "metric_series",
    "Reads the course of metrics of a job over a range of optimizer steps: points as [step, "
    "value], statistics over all samples in range (minimum, maximum, mean, slope, NaN and "
    "infinite samples), spikes with start, peak, baseline before and end, and, with "
    "compare_step, mean and median before and after a step. Take numbers from here; work none "
    "out yourself. 'exact' is false where the series was too long for every sample to be looked "
    "at.",
    MetricSeriesArguments,
    metric_series,
)
