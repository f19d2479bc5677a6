"""The times of steps: how fast a trainer goes, and whether it has stopped."""

from __future__ import annotations

import itertools
import statistics
from collections import deque
from typing import Final

DEFAULT_STALL_SECONDS: Final = 30.0
"""With no step for this long a trainer counts as stalled, unless the control plane says else."""

_MEDIAN_FACTOR: Final = 10.0
_REMEMBERED: Final = 64


class Pace:
    """Follows a trainer's steps by a monotonic clock that its caller reads, in seconds."""

    def __init__(self, now: float, *, stall_after: float = DEFAULT_STALL_SECONDS) -> None:
        """Begins to wait for the first step at ``now``."""
        self.stall_after = stall_after
        self._steps: deque[tuple[int, float]] = deque(maxlen=_REMEMBERED)
        self._newest = now
        self._known_median: float | None = None

    def step(self, step: int, now: float) -> None:
        """Notes that so many steps are done. One that was there before counts as a sign of life.

        Args:
            step: Optimizer steps done.
            now: When. Earlier than what was noted before counts as then: clocks are set at times.
        """
        now = max(now, self._newest)
        if self._steps and step < self._steps[-1][0]:
            self._known_median = None
            self._steps.clear()  # training went back to a checkpoint
        if not self._steps or step > self._steps[-1][0]:
            self._known_median = None
            self._steps.append((step, now))
        self._newest = now

    def rest(self, now: float) -> None:
        """Notes a reason for there being no step up to now, such as a pause."""
        self._newest = now

    def resume(self, now: float) -> None:
        """Notes the end of a pause, whose length is no part of the pace."""
        self._newest = now = max(now, self._newest)
        waited = now - self._steps[-1][1] if self._steps else 0.0
        moved = [(step, when + waited) for step, when in self._steps]
        self._steps.clear()
        self._steps.extend(moved)

    def idle(self, now: float) -> float:
        """Returns the time since the newest step, or since the start."""
        return now - self._newest

    def stalls_at(self) -> float:
        """Returns when the trainer counts as stalled if there is no step until then."""
        limit = self.stall_after
        if len(self._steps) > 1:
            limit = max(limit, _MEDIAN_FACTOR * self._median())
        return self._newest + limit

    def steps_per_second(self, now: float) -> float | None:
        """Returns the rate over the last steps; None: unknown, or stalled."""
        if len(self._steps) < 2 or now >= self.stalls_at():
            return None
        (first, begin), (last, end) = self._steps[0], self._steps[-1]
        # Since the newest step at least as much time has passed as this.
        elapsed = max(end, now - self._median()) - begin
        return (last - first) / elapsed if elapsed > 0 else None

    def _median(self) -> float:
        """Returns the median time of a step; where reports are missing, their share of the gap."""
        if self._known_median is None:
            self._known_median = statistics.median(
                (end - begin) / (last - first)
                for (first, begin), (last, end) in itertools.pairwise(self._steps)
            )
        return self._known_median
