"""Series of samples: statistics, reduction that keeps spikes, and a run's lineage."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from control_plane.domain.session import Run


@dataclass(frozen=True, slots=True)
class Sample:
    """A value of a metric: the number of optimizer steps done, and microseconds since 1970."""

    step: int
    value: float
    time: int


@dataclass(frozen=True, slots=True)
class Statistics:
    """Numbers about a series; NaN and infinite samples are counted apart and left out.

    `slope` is the least-squares slope per optimizer step; None where there are not two
    steps, or where it is too large to be told.
    """

    count: int
    non_finite_count: int
    last: float | None = None
    minimum: float | None = None
    maximum: float | None = None
    mean: float | None = None
    slope: float | None = None


def describe(samples: Sequence[Sample]) -> Statistics:
    """Statistics of samples in the order of their steps."""
    finite = [s for s in samples if math.isfinite(s.value)]
    odd = len(samples) - len(finite)
    if not finite:
        return Statistics(len(samples), odd)
    values = [s.value for s in finite]
    # Scaled, so that neither a sum nor a difference of values is too large; and rounding must not
    # take the mean out of their range.
    scale = max(map(abs, values)) or 1.0
    mean = scale * (math.fsum(v / scale for v in values) / len(values))
    mean = min(max(mean, min(values)), max(values))
    step_mean = math.fsum(s.step for s in finite) / len(finite)
    spread = math.fsum((s.step - step_mean) ** 2 for s in finite)
    slope = None
    if spread > 0:
        slope = scale * math.fsum(
            (s.step - step_mean) / spread * (s.value / scale - mean / scale) for s in finite
        )
        slope = slope if math.isfinite(slope) else None
    return Statistics(len(samples), odd, finite[-1].value, min(values), max(values), mean, slope)


def reduce(samples: Sequence[Sample], max_points: int) -> list[Sample]:
    """At most `max_points` of the samples: first, last, and each bucket's extremes.

    Buckets hold equal numbers of samples. The largest and the smallest value of each
    are kept, and, where there is one, a NaN or infinite value, so that no spike is
    reduced away. (With less than 5 points there is room for two of the three: a value
    that is no number comes first, then the largest.)

    Args:
        samples: In the order of their steps.
        max_points: At least 4.
    """
    if len(samples) <= max_points:
        return list(samples)
    odd_ones = any(not math.isfinite(s.value) for s in samples)
    inner = len(samples) - 2
    buckets = max(1, (max_points - 2) // (3 if odd_ones else 2))
    kept = {0, len(samples) - 1}
    for bucket in range(buckets):
        start = 1 + bucket * inner // buckets
        end = 1 + (bucket + 1) * inner // buckets
        kept.update(_extremes(samples, range(start, end))[: max_points - 2])
    return [samples[i] for i in sorted(kept)]


def _extremes(samples: Sequence[Sample], indexes: range) -> list[int]:
    """Where a stretch of samples shows most, the most telling first."""
    finite = [i for i in indexes if math.isfinite(samples[i].value)]
    extremes = [i for i in indexes if not math.isfinite(samples[i].value)][:1]
    if finite:
        extremes.append(max(finite, key=lambda i: samples[i].value))
        extremes.append(min(finite, key=lambda i: samples[i].value))
    return extremes


def lineage(runs: Sequence[Run]) -> list[tuple[int, int, int | None]]:
    """Which run's samples tell the course of the job, and for which steps.

    A run that went on from step S replaces whatever earlier runs did after S. What
    the first run measured before its first step, such as an evaluation, counts too.

    Args:
        runs: In the order of their numbers.

    Returns:
        (run number, first step, last step or None for no end), ascending, not overlapping.
    """
    course: list[tuple[int, int, int | None]] = []
    end: int | None = None
    for run in sorted(runs, key=lambda r: r.number, reverse=True):
        first = run.start_step + 1
        if end is None or first <= end:
            course.append((run.number, first, end))
            end = run.start_step
    course.reverse()
    if course:
        number, first, last = course[0]
        course[0] = (number, first - 1, last)
    return course
