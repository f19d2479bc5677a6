"""Numbers about a metric's course: worked out here, so that no model has to do sums.

Spikes are found as a Hampel filter finds outliers (Hampel, "The influence curve and its role in
robust estimation", JASA 69, 1974), with a window that looks back only: a sample deviates where
it is further from the median of the samples before it than DEVIATIONS times their median
absolute deviation (scaled to a standard deviation of normal noise), and further than
RELATIVE_FLOOR times that median. Median and deviation are those of the last WINDOW samples that
did not deviate themselves, so a spike does not hide the next one. Consecutive deviating samples
are one spike; a deviation that lasts for WINDOW samples is a new level, and what comes after is
measured against that. NaN and infinite samples are counted, not searched.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from statistics import median_high, median_low
from typing import Final, NamedTuple

from midcourse.control.v1 import control_pb2

WINDOW: Final = 25
"""Samples that a sample is compared with, at most."""

MIN_HISTORY: Final = 5
"""Samples that there must be before one can be said to deviate."""

DEVIATIONS: Final = 8.0
"""Least deviation of a spike, in standard deviations of the noise before it."""

RELATIVE_FLOOR: Final = 0.2
"""Least deviation of a spike, relative to the median before it."""

_MAD_TO_SIGMA: Final = 1.4826


class Point(NamedTuple):
    """A sample: the number of optimizer steps done, and the value; perhaps NaN or infinite."""

    step: int
    value: float


class Ending(StrEnum):
    """How a spike ended."""

    RECOVERED = "recovered"
    NEW_LEVEL = "new_level"
    """The metric stayed there: `WINDOW` samples and more."""
    ONGOING = "ongoing"
    """The series ends before either could be said."""


@dataclass(frozen=True, slots=True)
class Spike:
    """A stretch of samples far from those before it.

    Attributes:
        start_step: Step of the first sample of it.
        peak_step: Step of the sample furthest from the baseline.
        peak_value: That sample.
        baseline: Median of the samples before it.
        end_step: Step of the first sample that is back; None: none is.
        ending: How it ended.
    """

    start_step: int
    peak_step: int
    peak_value: float
    baseline: float
    end_step: int | None
    ending: Ending

    @property
    def is_upward(self) -> bool:
        """Whether it went up."""
        return self.peak_value > self.baseline

    @property
    def size(self) -> float:
        """How far from the baseline it went; infinite where that is too far for a number."""
        return abs(self.peak_value - self.baseline)


@dataclass(frozen=True, slots=True)
class Summary:
    """Numbers about a series. NaN and infinite samples are counted apart and left out of the rest.

    Attributes:
        count: Samples, NaN and infinite ones included.
        non_finite_count: Samples that were NaN or infinite.
        first_non_finite_step: Step of the first of those; None: there is none.
        first: The first sample, whatever its value.
        last: The last sample, whatever its value.
        minimum: The smallest finite sample; None: there is none.
        maximum: The largest finite sample; None: there is none.
        mean: Arithmetic mean; None: no finite sample.
        slope: Least-squares slope per optimizer step; None: fewer than two steps.
        spikes: In the order of their steps.
        exact: Every sample was looked at. Otherwise the series came reduced; what is missing
            are samples between the extremes: count, mean, minimum, maximum and slope are of all
            samples still, spikes may begin a little earlier and end a little later than said.
    """

    count: int
    non_finite_count: int
    first_non_finite_step: int | None
    first: Point
    last: Point
    minimum: Point | None
    maximum: Point | None
    mean: float | None
    slope: float | None
    spikes: tuple[Spike, ...]
    exact: bool


@dataclass(frozen=True, slots=True)
class Stretch:
    """Finite samples of a range of steps.

    Attributes:
        count: How many there are.
        mean: Arithmetic mean; None: there are none.
        median: Median; None: there are none.
    """

    count: int
    mean: float | None
    median: float | None


@dataclass(frozen=True, slots=True)
class BeforeAfter:
    """A metric before and after a step.

    Attributes:
        step: The step.
        window: Length of either range, in optimizer steps.
        before: Steps from `step - window` to `step - 1`.
        after: Steps from `step` to `step + window - 1`.
    """

    step: int
    window: int
    before: Stretch
    after: Stretch


def points_of(series: control_pb2.Series) -> list[Point]:
    """The samples of a series, in the order of their steps."""
    return [Point(*each) for each in zip(series.steps, series.values, strict=True)]


def summarize(series: control_pb2.Series) -> Summary:
    """Tells about a series of the control plane, reduced or not.

    What the control plane has worked out over all samples is taken from it.

    Raises:
        ValueError: The series has no samples.
    """
    points = points_of(series)
    if not points:
        raise ValueError(f"the series of {series.name!r} has no samples")
    of_all = series.statistics
    finite = [point for point in points if math.isfinite(point.value)]
    odd = [point.step for point in points if not math.isfinite(point.value)]
    return Summary(
        count=of_all.count,
        non_finite_count=of_all.non_finite_count,
        first_non_finite_step=odd[0] if odd else None,
        first=points[0],
        last=points[-1],
        # A reduction keeps the extremes.
        minimum=min(finite, key=_value, default=None),
        maximum=max(finite, key=_value, default=None),
        mean=of_all.mean if of_all.HasField("mean") else None,
        slope=of_all.slope if of_all.HasField("slope") else None,
        spikes=tuple(find_spikes(points)),
        exact=not series.reduced,
    )


@dataclass(slots=True)
class _Excursion:
    """A spike that is being looked at."""

    baseline: float
    threshold: float
    points: list[Point] = field(default_factory=list)

    def is_back(self, value: float) -> bool:
        """Whether a sample has come back, or has gone past the baseline."""
        side = math.copysign(1.0, self.points[0].value - self.baseline)
        return side * (value - self.baseline) <= self.threshold

    def closed(self, ending: Ending, end_step: int | None = None) -> Spike:
        peak = max(self.points, key=lambda point: abs(point.value - self.baseline))
        return Spike(self.points[0].step, peak.step, peak.value, self.baseline, end_step, ending)


def find_spikes(points: Iterable[Point]) -> list[Spike]:
    """Finds spikes, up and down, by the rule that the module states.

    Args:
        points: In the order of their steps; the finite ones count.
    """
    found: list[Spike] = []
    history: deque[float] = deque(maxlen=WINDOW)
    excursion: _Excursion | None = None
    for point in points:
        if not math.isfinite(point.value):
            continue
        if excursion is not None:
            if excursion.is_back(point.value):
                found.append(excursion.closed(Ending.RECOVERED, point.step))
            elif len(excursion.points) == WINDOW:
                found.append(excursion.closed(Ending.NEW_LEVEL))
                history = deque((each.value for each in excursion.points), maxlen=WINDOW)
            else:
                excursion.points.append(point)
                continue
            excursion = None
        baseline, threshold = _expected(history)
        if abs(point.value - baseline) > threshold:
            excursion = _Excursion(baseline, threshold, [point])
        else:
            history.append(point.value)
    if excursion is not None:
        found.append(excursion.closed(Ending.ONGOING))
    return found


def before_after(points: Sequence[Point], step: int, window: int) -> BeforeAfter:
    """Compares a metric before and after a step, such as that at which a change took effect.

    Args:
        points: In the order of their steps.
        step: First step that counts as after.
        window: Length of either range, in optimizer steps; at least 1.

    Raises:
        ValueError: The window is shorter than one step.
    """
    if window < 1:
        raise ValueError(f"window is 1 step or more, got {window}")
    return BeforeAfter(
        step,
        window,
        _stretch(points, step - window, step),
        _stretch(points, step, step + window),
    )


def _expected(history: Sequence[float]) -> tuple[float, float]:
    """Where the next sample is expected, and how far off it may be."""
    if len(history) < MIN_HISTORY:
        return 0.0, math.inf
    # The lower of two middle values: a mean of them might be too large for a number.
    baseline = median_low(history)
    deviation = median_low([abs(value - baseline) for value in history])
    return baseline, max(DEVIATIONS * _MAD_TO_SIGMA * deviation, RELATIVE_FLOOR * abs(baseline))


def _stretch(points: Sequence[Point], start: int, end: int) -> Stretch:
    values = [p.value for p in points if start <= p.step < end and math.isfinite(p.value)]
    if not values:
        return Stretch(0, None, None)
    # Divided before they are added up: the sum might be too large for a number.
    mean = math.fsum(value / len(values) for value in values)
    low, high = median_low(values), median_high(values)
    return Stretch(len(values), mean, low if low == high else low / 2 + high / 2)


def _value(point: Point) -> float:
    return point.value
