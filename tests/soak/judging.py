"""Whether something grows: the slope of its second half, and how sure that is.

The slope is Theil and Sen's, the median of the slopes between all pairs of points, which a few
outliers do not move. What a process holds comes in steps, and neighbouring measurements say the
same; so the second half is cut into blocks of equal length first, and each block counts as one
point: its median. The bounds of the slope are those of Kendall's tau (Sen 1968).
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

DAY = 86_400.0
BLOCKS = 12
_Z = 1.96  # both bounds hold with 95 %


class Verdict(StrEnum):
    """What the measurements say of a bound."""

    BOUNDED = "bounded"
    """Surely less than the bound."""
    UNCLEAR = "can not be told yet"
    """The run was too short: what was seen fits either."""
    GROWS = "GROWS"
    """Surely more than the bound."""


@dataclass(frozen=True, slots=True)
class Trend:
    """A slope, in units a day, with its bounds."""

    slope: float
    low: float
    high: float

    def against(self, bound: float) -> Verdict:
        """Compares it with the most that something may grow in a day."""
        if self.low > bound:
            return Verdict.GROWS
        return Verdict.BOUNDED if self.high <= bound else Verdict.UNCLEAR


def trend(seconds: Sequence[float], values: Sequence[float], blocks: int = BLOCKS) -> Trend | None:
    """The trend of the second half of a course.

    Args:
        seconds: When each value was measured, ascending.
        values: What was measured.
        blocks: Into how many blocks the second half is cut.

    Returns:
        The trend; None: there are fewer than three blocks with something in them.
    """
    if not seconds:
        return None
    half = (seconds[0] + seconds[-1]) / 2
    length = (seconds[-1] - half) / blocks
    if length <= 0:
        return None
    inside: list[list[tuple[float, float]]] = [[] for _ in range(blocks)]
    for at, value in zip(seconds, values, strict=True):
        if at >= half:
            inside[min(blocks - 1, int((at - half) / length))].append((at, value))
    points = [
        (statistics.fmean(at for at, _ in block), statistics.median(value for _, value in block))
        for block in inside
        if block
    ]
    if len(points) < 3:
        return None
    slopes = sorted(
        (after - before) / (later - earlier) * DAY
        for n, (earlier, before) in enumerate(points)
        for later, after in points[n + 1 :]
    )
    count = len(points)
    spread = _Z * math.sqrt(count * (count - 1) * (2 * count + 5) / 18)
    low = max(0, math.floor((len(slopes) - spread) / 2))
    high = min(len(slopes) - 1, math.ceil((len(slopes) + spread) / 2))
    return Trend(statistics.median(slopes), slopes[low], slopes[high])
