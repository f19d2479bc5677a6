"""The curves that a value can follow over time: pure functions of the global step.

``global_step`` is the number of completed optimizer steps, so ``value_at(n)`` is what optimizer
step ``n + 1`` uses.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from trainer_agent.parameters.changes import Shape


def rescaled(value: float, old: float, new: float) -> float:
    """Scale a value by the factor that takes ``old`` to ``new``.

    What equals ``old`` becomes exactly ``new``, which the multiplication alone would miss by a
    rounding error now and then. ``old`` must not be zero.
    """
    return new if value == old else value * (new / old)


def between(start: float, end: float, fraction: float) -> float:
    """Return the point a fraction of the way from start to end, both ends exact."""
    if fraction >= 1.0:
        return end
    return start + (end - start) * fraction


@dataclass(frozen=True, slots=True)
class RampCurve:
    """A straight line, made at a boundary: its last step uses the target exactly.

    The first step already goes ``1 / steps`` of the way, so that a ramp over one step is a plain
    setting of the target.
    """

    start: float
    target: float
    begin: int
    """The global step of the boundary where it was made."""
    steps: int

    def value_at(self, global_step: int) -> float:
        """Return what the step after ``global_step`` uses."""
        return between(self.start, self.target, (global_step - self.begin + 1) / self.steps)

    def reached(self, global_step: int) -> bool:
        """Say whether the step after ``global_step`` uses the target."""
        return global_step - self.begin + 1 >= self.steps

    def rescaled(self, old: float, new: float) -> RampCurve:
        """Return the same line, scaled by the factor that takes ``old`` to ``new``."""
        return replace(
            self,
            start=rescaled(self.start, old, new),
            target=rescaled(self.target, old, new),
        )


@dataclass(frozen=True, slots=True)
class ScheduleCurve:
    """A warm-up and a decay, made at a boundary.

    Steps are counted as ``transformers.get_linear_schedule_with_warmup`` counts them: the first
    step uses ``start`` (the peak, without warm-up), the step after ``warmup_steps`` steps uses the
    peak, and the floor would be used by the step after the last; from there on it stays.
    """

    shape: Shape
    start: float
    peak: float
    floor: float
    warmup_steps: int
    steps: int
    begin: int
    """The global step of the boundary where it was made."""

    def value_at(self, global_step: int) -> float:
        """Return what the step after ``global_step`` uses."""
        done = global_step - self.begin
        if done < self.warmup_steps:
            return between(self.start, self.peak, done / self.warmup_steps)
        fraction = min(1.0, (done - self.warmup_steps) / (self.steps - self.warmup_steps))
        match self.shape:
            case Shape.CONSTANT:
                return self.peak
            case Shape.LINEAR:
                return between(self.peak, self.floor, fraction)
            case Shape.COSINE:
                if fraction >= 1.0:
                    return self.floor
                return between(self.peak, self.floor, 0.5 * (1.0 - math.cos(math.pi * fraction)))

    def rescaled(self, old: float, new: float) -> ScheduleCurve:
        """Return the same curve, scaled by the factor that takes ``old`` to ``new``."""
        return replace(
            self,
            start=rescaled(self.start, old, new),
            peak=rescaled(self.peak, old, new),
            floor=rescaled(self.floor, old, new),
        )
