"""The values of a short run, changed as their promises say. Pure.

The numbers' half of :mod:`tests.support.in_force_model`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from trainer_agent.parameters import (
    Change,
    Coupling,
    GuardRails,
    Multiply,
    Ramp,
    Release,
    Set,
    SetMode,
)

RATE = "learning_rate"
DECAY = "weight_decay"
CLIP = "max_grad_norm"
ACCUMULATION = "gradient_accumulation_steps"
GLOBAL = "global_batch_size"
BATCH = "per_device_train_batch_size"
LOGGING = "logging_steps"
MAX_STEPS = "max_steps"
LEVEL = "level"
PHASE = "phase"
PINNED = "pinned"

WHOLE = frozenset({ACCUMULATION, GLOBAL, BATCH, LOGGING, MAX_STEPS, LEVEL})
PHASES = ("warm", "cold")
BROKEN_LEVEL = 7
"""The level that the script's own code fails to set."""
SMALLEST: Mapping[str, float] = {**dict.fromkeys(WHOLE, 1), LEVEL: 0, DECAY: 0.0, CLIP: 0.0}
LARGEST: Mapping[str, float] = {LEVEL: 9}


@dataclass(frozen=True)
class Setting:
    """The run that the script asks for."""

    samples: int
    max_steps: int
    decreasing: bool
    """The learning rate goes to 0 in a straight line; else it is constant."""
    rate: float
    values: Mapping[str, Any]
    """The other parameters' values."""
    rails: Mapping[str, GuardRails]
    unavailable: frozenset[str] = frozenset()
    """Actions that it has no way to carry out."""


class Impossible(Exception):  # noqa: N818 - an answer of the model, no fault of it
    """A change can not be made.

    Args:
        reason: The reason of the rejection.
        culprit: The parameter.
        for_now: It is so for the value in force, and may be otherwise once that is another.
    """

    def __init__(self, reason: str, culprit: str = "", *, for_now: bool = False) -> None:
        super().__init__(reason)
        self.reason = reason
        self.culprit = culprit
        self.for_now = for_now


class Rate:
    """The learning rate: the schedule's, times a factor, under a ramp, under a hold."""

    def __init__(self, setting: Setting) -> None:
        self._base = setting.rate
        self._length = setting.max_steps if setting.decreasing else None
        self._factor = 1.0
        self._ramp: tuple[float, float, int, int] | None = None
        self._hold: tuple[float, float] | None = None

    def _own(self, step: int) -> float:
        if self._length is None:
            return self._base
        return self._base * max(0.0, (self._length - step) / self._length)

    def _beneath(self, step: int) -> float:
        return self._own(step) * self._factor

    def at(self, step: int) -> float:
        """Return what the step after ``step`` uses."""
        if self._hold is not None and step < self._hold[1]:
            return self._hold[0]
        if self._ramp is not None:
            start, target, begin, steps = self._ramp
            return start + (target - start) * min(1.0, (step + 1 - begin) / steps)
        return self._beneath(step)

    def settle(self, step: int) -> None:
        """End what is over before the step after ``step``."""
        if self._hold is not None and step >= self._hold[1]:
            self._hold = None
        if self._ramp is not None and step + 1 - self._ramp[2] >= self._ramp[3]:
            target = self._ramp[1]
            if self._beneath(step):
                self._factor *= target / self._beneath(step)
                self._ramp = None

    def change(self, change: Change, step: int) -> None:
        match change:
            case Set(mode=SetMode.HOLD, value=value, hold_steps=steps):
                _positive_or(float(value), zero=True)
                self._hold = (float(value), math.inf if steps is None else step + steps)
            case Set(mode=SetMode.PEAK, value=value):
                _positive_or(float(value))
                self._factor = float(value) / self._base
                self._hold = self._ramp = None
            case Set(value=value):
                _positive_or(float(value))
                if not self._beneath(step):
                    raise Impossible("NO_SCALE_FACTOR", for_now=True)
                self._factor *= float(value) / self._beneath(step)
                self._hold = self._ramp = None
            case Multiply(factor=factor):
                self._factor *= factor
                if self._hold is not None:
                    self._hold = (self._hold[0] * factor, self._hold[1])
                if self._ramp is not None:
                    start, target, begin, steps = self._ramp
                    self._ramp = (start * factor, target * factor, begin, steps)
            case Ramp(value=value, steps=steps):
                _positive_or(value)
                self._ramp = (self.at(step), value, step, steps)
                self._hold = None
                self.settle(step)
            case Release():
                self._factor, self._hold, self._ramp = 1.0, None, None
            case _:
                raise NotImplementedError(f"the model has no {change!r}")


def _positive_or(value: float, *, zero: bool = False) -> None:
    if value < 0 or (value == 0 and not zero):
        raise Impossible("INVALID_VALUE")


class Values:
    """All values in force, and the place in the data that some of them depend on."""

    def __init__(self, setting: Setting) -> None:
        self._setting = setting
        self.rate = Rate(setting)
        self.others = dict(setting.values)
        self.consumed = 0
        self.step = 0
        self.taken = False
        """The next update has its micro-batches already: the run is held right before it."""

    @property
    def ends_epoch(self) -> bool:
        return self.consumed == self._length

    def begin_step(self) -> tuple[int, ...]:
        """Take the next update's micro-batches; return the samples of each."""
        if self.step == 0 or self.ends_epoch:
            self.consumed = 0
            self._size = int(self.others[BATCH])
            self._length = math.ceil(self._setting.samples / self._size)
        first = self.consumed
        self.consumed = min(first + int(self.others[ACCUMULATION]), self._length)
        self.step += 1
        self.taken = False
        return tuple(
            min(self._size, self._setting.samples - index * self._size)
            for index in range(first, self.consumed)
        )

    def read(self, name: str) -> Any:
        """Return a value; None: there is no such parameter."""
        if name == RATE:
            return self.rate.at(self.step)
        if name == GLOBAL:
            return self.others[BATCH] * self.others[ACCUMULATION]
        return self.others.get(name)

    def all(self) -> dict[str, Any]:
        return {RATE: self.read(RATE), **self.others}

    # ---- Where a change may be made ----

    def opens(self, change: Change) -> bool:
        if change.parameter in {BATCH, PHASE}:
            return self.ends_epoch
        if change.parameter in {ACCUMULATION, GLOBAL}:
            wanted = self._accumulation(change)
            return wanted is None or (not self.taken and self._aligned(self.consumed, wanted))
        return True

    def _aligned(self, consumed: int, accumulation: int) -> bool:
        return bool(consumed == self._length or consumed % accumulation == 0)

    def _accumulation(self, change: Change) -> int | None:
        """Return the accumulation that is asked for; None: none that could be."""
        try:
            value = self._target(change)
        except Impossible:
            return None
        if isinstance(value, str) or value < 1:
            return None
        if change.parameter == GLOBAL:
            unit = int(self.others[BATCH])
            return None if value % unit else int(value) // unit
        return int(value)

    def _never_opens(self, accumulation: int) -> bool:
        left = self.others[MAX_STEPS] - self.step
        here, updates = self.consumed, 0
        while (self.taken and not updates) or not self._aligned(here, accumulation):
            here, updates = min(here + self.others[ACCUMULATION], self._length), updates + 1
        return bool(accumulation != self.others[ACCUMULATION] and updates >= left)

    # ---- Changes ----

    def change(self, change: Change) -> None:
        """Make a change.

        Raises:
            Impossible: It can not be made; nothing changed.
        """
        name = change.parameter
        if name == RATE:
            self.rate.change(change, self.step)
            return
        if name not in {*self.others, GLOBAL}:
            raise Impossible("UNKNOWN_PARAMETER")
        before, value = self.read(name), self._target(change)
        try:
            self._check_value(name, value, released=isinstance(change, Release))
        except Impossible as impossible:
            # What a factor comes to depends on what there is.
            if isinstance(change, Multiply) and impossible.reason == "OUT_OF_BOUNDS":
                impossible.for_now = True
            raise
        if name == GLOBAL:
            value, name = value // int(self.others[BATCH]), ACCUMULATION
        self.others[name] = value
        coupling = getattr(change, "coupling", Coupling.NONE)
        ratio = 1.0 if coupling is Coupling.NONE else self.read(change.parameter) / before
        if ratio != 1.0:
            factor = math.sqrt(ratio) if coupling is Coupling.SQRT else ratio
            self.rate.change(Multiply(RATE, factor), self.step)

    def _target(self, change: Change) -> Any:
        """Return the value that is asked for, of the right type."""
        name = change.parameter
        match change:
            case Set(value=value):
                pass
            case Multiply(factor=factor):
                if isinstance(self.read(name), str):
                    raise Impossible("UNSUPPORTED_OPERATION")
                value = self.read(name) * factor
                if name in WHOLE and value != int(value):
                    raise Impossible("INVALID_VALUE", for_now=True)
            case Release():
                values = self._setting.values
                value = values[BATCH] * values[ACCUMULATION] if name == GLOBAL else values[name]
            case _:
                raise Impossible("UNSUPPORTED_OPERATION")
        if isinstance(value, str) != (name == PHASE):
            raise Impossible("INVALID_TYPE")
        if name in WHOLE:
            if value != int(value):
                raise Impossible("INVALID_TYPE")
            return int(value)
        return value

    def _check_value(self, name: str, value: Any, *, released: bool) -> None:
        if released and value == self.read(name):
            return
        if not released:
            if name == PHASE and value not in PHASES:
                raise Impossible("OUT_OF_BOUNDS")
            if name in SMALLEST and value < SMALLEST[name]:
                raise Impossible("OUT_OF_BOUNDS")
            if name in LARGEST and value > LARGEST[name]:
                raise Impossible("OUT_OF_BOUNDS")
        if name == MAX_STEPS and value < self.step + 1:
            raise Impossible("OUT_OF_BOUNDS")
        if name == LEVEL and value == BROKEN_LEVEL:
            raise Impossible("APPLY_FAILED")
        if name == GLOBAL:
            if value % int(self.others[BATCH]):
                raise Impossible("NOT_DIVISIBLE")
            name, value = ACCUMULATION, value // int(self.others[BATCH])
        if name == ACCUMULATION and self._never_opens(value):
            raise Impossible("NEVER_ALIGNED")
