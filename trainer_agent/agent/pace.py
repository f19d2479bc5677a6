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
        self._resumed: float | None = None
        self._known_median: float | None = None

    def step(self, step: int, when: float) -> None:
        """Notes that so many steps are done. One that was there before counts as a sign of life.

        Args:
            step: Optimizer steps done.
            when: When that was, which may be long before it is heard of. Earlier than the step
                before it counts as then: clocks are set at times.
        """
        self._newest = max(when, self._newest)
        if self._steps and step < self._steps[-1][0]:
            self._steps.clear()  # training went back to a checkpoint
        if self._steps and step == self._steps[-1][0]:
            return
        self._known_median = None
        if self._steps and self._resumed is not None:
            # When the pause ended is heard of late or not at all: from here on it goes as before.
            last, end = self._steps[-1]
            moved = [(s + step - last, w + when - end) for s, w in self._steps]
            self._steps.clear()
            self._steps.extend(moved)
        else:
            self._steps.append((step, max(when, self._steps[-1][1]) if self._steps else when))
        self._resumed = None

    def rest(self, now: float) -> None:
        """Notes a reason for there being no step up to now, such as a pause."""
        self._newest = now

    def resume(self, now: float) -> None:
        """Notes the end of a pause, whose length is no part of the pace."""
        self._newest = self._resumed = max(now, self._newest)

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
        if end <= begin:
            return None
        # Since the newest step at least as much time has passed as this.
        since = end if self._resumed is None else self._resumed
        overdue = max(0.0, now - self._median() - since)
        return (last - first) / (end - begin + overdue)

    def _median(self) -> float:
        """Returns the median time of a step; where reports are missing, their share of the gap."""
        if self._known_median is None:
            self._known_median = statistics.median(
                (end - begin) / (last - first)
                for (first, begin), (last, end) in itertools.pairwise(self._steps)
            )
        return self._known_median
