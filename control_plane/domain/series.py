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

    `slope` is the least-squares slope per optimizer step.
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
    mean = math.fsum(v / len(values) for v in values)
    step_mean = math.fsum(s.step for s in finite) / len(finite)
    spread = math.fsum((s.step - step_mean) ** 2 for s in finite)
    slope = None
    if spread > 0:
        slope = math.fsum((s.step - step_mean) / spread * (s.value - mean) for s in finite)
    return Statistics(len(samples), odd, finite[-1].value, min(values), max(values), mean, slope)


def reduce(samples: Sequence[Sample], max_points: int) -> list[Sample]:
    """At most `max_points` of the samples: first, last, and each bucket's extremes.

    Buckets hold equal numbers of samples. NaN and infinite values count as extremes,
    so that a spike can never be reduced away.

    Args:
        samples: In the order of their steps.
        max_points: At least 4.
    """
    if len(samples) <= max_points:
        return list(samples)
    inner = len(samples) - 2
    buckets = (max_points - 2) // 2
    kept = {0, len(samples) - 1}
    for bucket in range(buckets):
        start = 1 + bucket * inner // buckets
        end = 1 + (bucket + 1) * inner // buckets
        indexes = range(start, end)
        odd = [i for i in indexes if not math.isfinite(samples[i].value)]
        kept.update(odd[:2])
        if len(odd) < 2:
            finite = [i for i in indexes if math.isfinite(samples[i].value)]
            low = min(finite, key=lambda i: samples[i].value)
            high = max(finite, key=lambda i: samples[i].value)
            kept.update([low, high] if not odd else [high])
    return [samples[i] for i in sorted(kept)]


def lineage(runs: Sequence[Run]) -> list[tuple[int, int, int | None]]:
    """Which run's samples tell the course of the job, and for which steps.

    A run that went on from step S replaces whatever earlier runs did after S.

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
    return course
