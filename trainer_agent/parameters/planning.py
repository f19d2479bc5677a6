"""What a change makes of the parameter groups, or why it cannot. Pure.

One group is the reference: its value is the one that the caller means and sees. The others that
the change is for keep their ratio to it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

from trainer_agent.parameters.base import Boundary, Refused
from trainer_agent.parameters.changes import (
    Change,
    Multiply,
    Ramp,
    Release,
    Schedule,
    Set,
    SetMode,
    Shape,
)
from trainer_agent.parameters.overrides import GroupState, Hold
from trainer_agent.parameters.schedule_shapes import RampCurve, ScheduleCurve, rescaled

MAXIMUM_STEPS = 2**53
"""No run is longer; beyond it a step number is no longer exact as a floating point number."""


def plan(
    change: Change, states: Sequence[GroupState], targets: Sequence[int], boundary: Boundary
) -> list[GroupState]:
    """Return the state of every group after a change.

    Args:
        change: What to change.
        states: Every group as it is, settled.
        targets: The groups that the change is for, the reference first.
        boundary: Where the run stands.

    Raises:
        Refused: The change cannot be made; with the reason.
    """
    planner = _Planner([states[index] for index in targets], boundary)
    changed = list(states)
    for index, state in zip(targets, planner.plan(change), strict=True):
        # A ramp over a single step is at its target already.
        changed[index] = state.settled(boundary.global_step)
    return changed


class _Planner:
    """Plans for the groups that a change is for; the first one is the reference."""

    def __init__(self, groups: list[GroupState], boundary: Boundary) -> None:
        self._groups = groups
        self._boundary = boundary
        self._now = boundary.global_step
        self._in_force = groups[0].value(self._now)

    def plan(self, change: Change) -> list[GroupState]:
        match change:
            case Set(mode=SetMode.HOLD):
                return self._hold(change)
            case Set() if change.hold_steps is not None:
                raise self._refused(
                    "INVALID_STEPS",
                    f"hold_steps belongs to mode hold, and the mode is {change.mode.value}; leave "
                    "hold_steps out or use mode hold",
                )
            case Set(mode=SetMode.PEAK):
                return self._peak(change)
            case Set():
                return self._set(change)
            case Multiply():
                factor = self._number("factor", change.factor)
                return [group.multiplied(factor) for group in self._groups]
            case Ramp():
                return self._ramp(change)
            case Schedule():
                return self._schedule(change)
            case Release():
                return [group.released() for group in self._groups]

    def _set(self, change: Set) -> list[GroupState]:
        value = self._number("value", change.value, zero="mode hold")
        old = self._groups[0].beneath(self._now)
        if old == 0.0:
            raise self._refused(
                "NO_SCALE_FACTOR",
                f"the schedule is at 0 now, and no factor scales it to {value!r}; use mode hold "
                "for a constant value, mode peak to raise the whole schedule, or follow a new "
                "schedule",
                for_now=True,
            )
        return [
            group.moved(self._now, rescaled(group.beneath(self._now), old, value))
            for group in self._groups
        ]

    def _peak(self, change: Set) -> list[GroupState]:
        value = self._number("value", change.value, zero="mode hold")
        old = self._groups[0].base_in_force
        if not old:
            raise self._refused(
                "NO_BASE_VALUE",
                "the value that the schedule was built around is "
                f"{'not known' if old is None else '0'}, so that mode peak has nothing to scale; "
                "use mode default, which scales the value now in force",
                for_now=old is not None,
            )
        return [group.rebased(old, value) for group in self._groups]

    def _hold(self, change: Set) -> list[GroupState]:
        value = self._number("value", change.value, zero="")
        until = None
        if change.hold_steps is not None:
            until = self._now + self._steps("hold_steps", change.hold_steps)
        return [
            replace(group, override=replace(group.override, hold=Hold(at, until)))
            for group, at in zip(self._groups, self._spread(value), strict=True)
        ]

    def _ramp(self, change: Ramp) -> list[GroupState]:
        value = self._number("value", change.value, zero="a linear schedule with floor 0")
        steps = self._steps("steps", change.steps)
        return [
            replace(
                group,
                override=replace(
                    group.override,
                    hold=None,
                    ramp=RampCurve(group.value(self._now), target, self._now, steps),
                ),
            )
            for group, target in zip(self._groups, self._spread(value), strict=True)
        ]

    def _schedule(self, change: Schedule) -> list[GroupState]:
        steps = self._schedule_steps(change)
        warmup = self._steps("warmup_steps", change.warmup_steps, at_least=0)
        if warmup >= steps:
            raise self._refused(
                "INVALID_STEPS",
                f"warmup_steps must be less than the schedule's {steps} steps, got {warmup}",
            )
        peak = self._in_force
        if change.peak is not None:
            peak = self._number("peak", change.peak, zero="mode hold")
        elif peak == 0.0:
            raise self._refused(
                "NO_PEAK", "the value now in force is 0: say which peak to go to", for_now=True
            )
        floor = self._number("floor", change.floor, zero="")
        if change.shape is Shape.CONSTANT and floor != 0.0:
            raise self._refused("INVALID_VALUE", "a constant schedule has no floor; leave it out")
        if floor > peak:
            raise self._refused(
                "INVALID_VALUE",
                f"floor must be at most the peak {peak!r}, got {floor!r}",
                for_now=change.peak is None,
            )
        curves = [
            ScheduleCurve(
                shape=change.shape,
                start=group.value(self._now),
                peak=peak_here,
                floor=rescaled(floor, peak, peak_here),
                warmup_steps=warmup,
                steps=steps,
                begin=self._now,
            )
            for group, peak_here in zip(self._groups, self._spread(peak), strict=True)
        ]
        return [
            replace(
                group,
                override=replace(group.override, schedule=curve, ramp=None, hold=None, pin=None),
            )
            for group, curve in zip(self._groups, curves, strict=True)
        ]

    def _schedule_steps(self, change: Schedule) -> int:
        if change.steps is not None:
            return self._steps("steps", change.steps)
        if self._boundary.max_steps is None:
            raise self._refused(
                "UNKNOWN_RUN_LENGTH",
                "how many steps the run has is not known: say how many steps the schedule has",
            )
        remaining = self._boundary.max_steps - self._now
        if remaining < 1:
            raise self._refused("NO_STEPS_REMAIN", "no step of the run remains for a schedule")
        return remaining

    def _spread(self, value: float) -> list[float]:
        """Return each group's share of a value for the reference group, ratios kept.

        The ratios are those of the values in force or, where these are zero, of the schedules in
        force or of what these are built around.
        """
        views: list[Callable[[GroupState], float | None]] = [
            lambda group: group.value(self._now),
            lambda group: group.beneath(self._now),
            lambda group: group.base_in_force,
        ]
        for view in views:
            weights = [view(group) for group in self._groups]
            if weights[0]:
                return [rescaled(weight or 0.0, weights[0], value) for weight in weights]
        return [value for _ in self._groups]

    def _number(self, what: str, value: object, *, zero: str | None = None) -> float:
        """Check a number.

        Args:
            what: The field's name.
            value: What was got.
            zero: None: zero is not allowed; empty: it is; else what to use instead of zero.
        """
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self._refused("INVALID_TYPE", f"{what} must be a number, got {value!r}")
        try:
            number = float(value)
        except OverflowError:
            number = math.inf
        if not math.isfinite(number):
            raise self._refused("INVALID_VALUE", f"{what} must be finite, got {value!r}")
        if number < 0.0:
            raise self._refused("INVALID_VALUE", f"{what} must not be negative, got {value!r}")
        if number == 0.0 and zero != "":
            way_out = f"; for a value of 0 use {zero}" if zero else ""
            raise self._refused("INVALID_VALUE", f"{what} must be greater than 0{way_out}")
        return number

    def _steps(self, what: str, value: object, *, at_least: int = 1) -> int:
        if isinstance(value, bool) or not isinstance(value, int):
            raise self._refused("INVALID_TYPE", f"{what} must be a whole number, got {value!r}")
        if not at_least <= value <= MAXIMUM_STEPS:
            raise self._refused(
                "INVALID_STEPS",
                f"{what} must be at least {at_least} and at most {MAXIMUM_STEPS}, got {value}",
            )
        return value

    def _refused(self, reason: str, message: str, *, for_now: bool = False) -> Refused:
        return Refused(reason, message, value_in_force=self._in_force, for_now=for_now)
