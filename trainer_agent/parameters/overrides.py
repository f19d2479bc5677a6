"""What lies over a scheduler's own value, for one parameter group. Pure.

From the bottom up: the scheduler's own value, scaled; a schedule that replaces it; a ramp on its
way to a value; a hold. The topmost that is there decides. Time goes on below: what a bounded hold
uncovers at its end is what would be there without it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

from trainer_agent.parameters.changes import Shape
from trainer_agent.parameters.schedule_shapes import RampCurve, ScheduleCurve, rescaled

if TYPE_CHECKING:
    from trainer_agent.parameters.base import Json


@dataclass(frozen=True, slots=True)
class Hold:
    """A constant value."""

    value: float
    until: int | None
    """The global step of the boundary at which it ends; None: when released."""

    def over(self, global_step: int) -> bool:
        """Say whether the step after ``global_step`` is free of it."""
        return self.until is not None and global_step >= self.until


@dataclass(frozen=True, slots=True)
class Override:
    """Everything that lies over a scheduler's own value."""

    scale: float = 1.0
    anchor: tuple[float, float] | None = None
    """An own value and what it exactly becomes; ``scale`` alone could miss it by a rounding error,
    and a value that was set has to stay as long as the scheduler's own value does."""
    schedule: ScheduleCurve | None = None
    ramp: RampCurve | None = None
    hold: Hold | None = None
    pin: tuple[int, float] | None = None
    """A global step and the exact value for the step after it, for the same reason."""

    @property
    def active(self) -> bool:
        """Whether it does anything at all."""
        return (
            self.scale != 1.0
            or self.schedule is not None
            or self.ramp is not None
            or self.hold is not None
        )

    @property
    def varying(self) -> bool:
        """Whether time alone changes the value."""
        return (
            self.schedule is not None
            or self.ramp is not None
            or (self.hold is not None and self.hold.until is not None)
        )

    def due(self, global_step: int) -> bool:
        """Say whether time has ended a part of it."""
        return (self.hold is not None and self.hold.over(global_step)) or (
            self.ramp is not None and self.ramp.reached(global_step)
        )

    @property
    def sound(self) -> bool:
        """Whether all its numbers are such that a value can be computed and scaled back."""
        numbers = [self.scale]
        if self.schedule is not None:
            numbers += [self.schedule.start, self.schedule.peak, self.schedule.floor]
        if self.ramp is not None:
            numbers += [self.ramp.start, self.ramp.target]
        if self.hold is not None:
            numbers.append(self.hold.value)
        return self.scale > 0.0 and all(map(math.isfinite, numbers))

    def scaled(self, own: float) -> float:
        """Return the scheduler's own value, scaled."""
        if self.anchor is not None and self.anchor[0] == own:
            return self.anchor[1]
        return own * self.scale

    def fixed(self, global_step: int) -> float | None:
        """Return the value for the next step where it does not depend on the scheduler."""
        if self.hold is not None and not self.hold.over(global_step):
            return self.hold.value
        if self.ramp is not None:
            return self.ramp.value_at(global_step)
        if self.schedule is not None:
            if self.pin is not None and self.pin[0] == global_step:
                return self.pin[1]
            return self.schedule.value_at(global_step)
        return None

    def to_json(self) -> dict[str, Any]:
        """Return it as plain numbers, strings, lists and mappings."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Json) -> Override:
        """Read what ``to_json`` returned.

        Raises:
            KeyError, TypeError, ValueError: It is something else.
        """
        anchor, schedule, ramp = data["anchor"], data["schedule"], data["ramp"]
        hold, pin = data["hold"], data["pin"]
        return cls(
            scale=float(data["scale"]),
            anchor=None if anchor is None else (float(anchor[0]), float(anchor[1])),
            schedule=None
            if schedule is None
            else ScheduleCurve(**{**schedule, "shape": Shape(schedule["shape"])}),
            ramp=None if ramp is None else RampCurve(**ramp),
            hold=None if hold is None else Hold(**hold),
            pin=None if pin is None else (int(pin[0]), float(pin[1])),
        )


NOTHING = Override()
"""No interference."""


@dataclass(frozen=True, slots=True)
class GroupState:
    """One parameter group: the scheduler's own value and what lies over it.

    Where the scheduler computes its value from a base value alone (``law``), a scale is sunk into
    that base value rather than kept above it: other readers see it, and a checkpoint has it even
    for a run without this package.
    """

    own: float
    """What the scheduler itself gives for the next step, with any scale sunk into it."""
    original_base: float | None = None
    """The value that the schedule was built around; None: not known."""
    base: float | None = None
    """The base value in the scheduler now, where scales are sunk into it; None: they are not."""
    law: Callable[[float], float] | None = field(default=None, compare=False, repr=False)
    """What the scheduler gives for the next step from a base value, where scales are sunk."""
    override: Override = NOTHING

    def beneath(self, global_step: int) -> float:
        """Return what the schedule in force gives for the next step, below any ramp or hold."""
        bare = replace(self.override, ramp=None, hold=None).fixed(global_step)
        return self.override.scaled(self.own) if bare is None else bare

    def value(self, global_step: int) -> float:
        """Return what the next step uses."""
        fixed = self.override.fixed(global_step)
        return self.override.scaled(self.own) if fixed is None else fixed

    @property
    def base_in_force(self) -> float | None:
        """What the schedule in force is built around; None: not known."""
        if self.override.schedule is not None:
            return self.override.schedule.peak
        if self.base is not None:
            return self.base
        if self.original_base is None:
            return None
        return self.original_base * self.override.scale

    def moved(self, global_step: int, new: float) -> GroupState:
        """Scale the schedule in force so that the next step uses ``new``; end ramp and hold.

        A schedule at zero stays there, as no factor takes it anywhere else.
        """
        old = self.beneath(global_step)
        over = replace(self.override, ramp=None, hold=None, pin=None)
        if old == 0.0:
            return replace(self, override=over)
        if over.schedule is not None:
            curve = over.schedule.rescaled(old, new)
            return replace(self, override=replace(over, schedule=curve, pin=(global_step, new)))
        if self.base is not None:
            return replace(self, own=new, base=rescaled(self.base, old, new), override=over)
        return replace(self, override=_with_scale(over, new / self.own, (self.own, new)))

    def multiplied(self, factor: float) -> GroupState:
        """Scale everything that there is, at every level."""
        over = self.override
        over = replace(
            over,
            schedule=over.schedule and over.schedule.rescaled(1.0, factor),
            ramp=over.ramp and over.ramp.rescaled(1.0, factor),
            hold=over.hold and replace(over.hold, value=over.hold.value * factor),
            pin=over.pin and (over.pin[0], over.pin[1] * factor),
        )
        if self.base is not None:
            return replace(self, own=self.own * factor, base=self.base * factor, override=over)
        anchor = (self.own, over.scaled(self.own) * factor)
        return replace(self, override=_with_scale(over, over.scale * factor, anchor))

    def rebased(self, old: float, new: float) -> GroupState:
        """Scale the schedule in force by the factor that takes the base value ``old`` to ``new``.

        Ends ramp and hold.
        """
        over = replace(self.override, ramp=None, hold=None, pin=None)
        if over.schedule is not None:
            return replace(self, override=replace(over, schedule=over.schedule.rescaled(old, new)))
        if self.base is not None and self.law is not None:
            base = rescaled(self.base, old, new)
            return replace(self, own=self.law(base), base=base, override=over)
        scale = over.scale * (new / old)
        if self.original_base:
            in_force = self.original_base * over.scale
            scale = rescaled(in_force, old, new) / self.original_base
            if self.own == self.original_base:
                anchor = (self.own, rescaled(in_force, old, new))
                return replace(self, override=_with_scale(over, scale, anchor))
        return replace(self, override=_with_scale(over, scale, None))

    def released(self) -> GroupState:
        """Return it as if nobody had interfered."""
        if self.law is None or self.original_base is None:
            return replace(self, override=NOTHING)
        return replace(
            self,
            own=self.law(self.original_base),
            base=self.original_base,
            override=NOTHING,
        )

    def settled(self, global_step: int) -> GroupState:
        """Drop what time has ended: a hold that is over, a ramp that has reached its target.

        From the step that uses a ramp's target on, the schedule in force is scaled to it. No factor
        leads from zero or, later, back from it, so there the ramp stays at its target.
        """
        over = self.override
        if over.hold is not None and over.hold.over(global_step):
            over = replace(over, hold=None)
        if over.pin is not None and over.pin[0] != global_step:
            over = replace(over, pin=None)
        state = self if over is self.override else replace(self, override=over)
        if over.ramp is None or not over.ramp.reached(global_step):
            return state
        target = over.ramp.target
        if (state.beneath(global_step) == 0.0) != (target == 0.0):
            return state
        moved = state.moved(global_step, target)
        return replace(moved, override=replace(moved.override, hold=over.hold))


def _with_scale(over: Override, scale: float, anchor: tuple[float, float] | None) -> Override:
    # A scale of one is no scale: the scheduler's own value is in force again, to the bit.
    return replace(over, scale=scale, anchor=None if scale == 1.0 else anchor)
