"""Live parameters: what a job's trainer declares, and the changes that can be asked for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

Value = float | int | bool | str
"""A parameter's value. Unknown is None, never zero."""


class Kind(StrEnum):
    """Type of a parameter's value."""

    NUMBER = "number"
    INTEGER = "integer"
    BOOLEAN = "boolean"
    TEXT = "text"


class Boundary(StrEnum):
    """Where in the training loop a parameter can change."""

    STEP = "step"
    ACCUMULATION = "accumulation"
    EPOCH = "epoch"
    GENERATION = "generation"


class Operation(StrEnum):
    """A way of changing a parameter."""

    SET = "set"
    PEAK = "peak"
    HOLD = "hold"
    MULTIPLY = "multiply"
    RAMP = "ramp"
    SCHEDULE = "schedule"
    RELEASE = "release"


class Shape(StrEnum):
    """Form of a new schedule."""

    LINEAR = "linear"
    COSINE = "cosine"
    CONSTANT = "constant"


class Coupling(StrEnum):
    """How the learning rate follows a change of batch size."""

    NONE = "none"
    LINEAR = "linear"
    SQRT = "sqrt"


@dataclass(frozen=True, slots=True)
class Bounds:
    """Limits of a value, in the parameter's unit; None: no limit."""

    minimum: float | None = None
    maximum: float | None = None
    minimum_exclusive: bool = False
    maximum_exclusive: bool = False
    allowed_texts: tuple[str, ...] = ()

    def objection(self, value: Value) -> str | None:
        """Says what is wrong with a value, or None where it is within the limits."""
        if isinstance(value, str):
            if self.allowed_texts and value not in self.allowed_texts:
                return f"got {value!r}, allowed: {', '.join(self.allowed_texts)}"
            return None
        if isinstance(value, bool):
            return None
        low, high = self.minimum, self.maximum
        too_low = low is not None and (value < low or (self.minimum_exclusive and value == low))
        too_high = high is not None and (value > high or (self.maximum_exclusive and value == high))
        return f"got {value:g}, allowed: {self}" if too_low or too_high else None

    def __str__(self) -> str:
        """The limits in words, such as "above 0, at most 1"."""
        parts = []
        if self.minimum is not None:
            parts.append(f"{'above' if self.minimum_exclusive else 'at least'} {self.minimum:g}")
        if self.maximum is not None:
            parts.append(f"{'below' if self.maximum_exclusive else 'at most'} {self.maximum:g}")
        if self.allowed_texts:
            parts.append("one of " + ", ".join(self.allowed_texts))
        return ", ".join(parts) or "any value"


@dataclass(frozen=True, slots=True)
class GuardRails:
    """Soft limits. `force` overrides only `max_relative_change`."""

    bounds: Bounds | None = None
    max_relative_change: float | None = None
    frozen: bool = False
    allowed_principals: tuple[str, ...] = ()


DEFAULT_GUARD_RAILS: Mapping[str, GuardRails] = {
    "learning_rate": GuardRails(max_relative_change=10.0),
}
"""Guard rails of parameters whose owner has declared none."""


@dataclass(frozen=True, slots=True)
class ParameterSpec:
    """A live parameter as the job's trainer declares it: its capability."""

    name: str
    kind: Kind = Kind.NUMBER
    unit: str = ""
    bounds: Bounds = Bounds()
    boundary: Boundary = Boundary.STEP
    operations: tuple[Operation, ...] = (Operation.SET,)
    groups: tuple[str, ...] = ()
    current_value: Value | None = None
    unavailable_reason: str = ""
    description: str = ""
    guard_rails: GuardRails | None = None

    @property
    def rails(self) -> GuardRails:
        """The guard rails in force: the owner's, else the defaults."""
        return self.guard_rails or DEFAULT_GUARD_RAILS.get(self.name, GuardRails())


@dataclass(frozen=True, slots=True)
class SetChange:
    """Set a value. `mode` is "set", "peak" or "hold"; `hold_steps` is for "hold" alone."""

    parameter: str
    value: Value
    group: str = ""
    mode: Literal["set", "peak", "hold"] = "set"
    hold_steps: int | None = None
    coupling: Coupling = Coupling.NONE
    op: Literal["set"] = "set"

    @property
    def operation(self) -> Operation:
        """The operation that the parameter must offer."""
        return Operation(self.mode)


@dataclass(frozen=True, slots=True)
class MultiplyChange:
    """Scale the value in force by a factor."""

    parameter: str
    factor: float
    group: str = ""
    op: Literal["multiply"] = "multiply"
    operation = Operation.MULTIPLY


@dataclass(frozen=True, slots=True)
class RampChange:
    """Go linearly to a value over some optimizer steps."""

    parameter: str
    value: Value
    steps: int
    group: str = ""
    op: Literal["ramp"] = "ramp"
    operation = Operation.RAMP


@dataclass(frozen=True, slots=True)
class ScheduleChange:
    """Follow a new schedule from here; `steps` None: over all steps that remain."""

    parameter: str
    shape: Shape
    peak: float | None = None
    warmup_steps: int = 0
    floor: float = 0.0
    steps: int | None = None
    group: str = ""
    op: Literal["schedule"] = "schedule"
    operation = Operation.SCHEDULE


@dataclass(frozen=True, slots=True)
class ReleaseChange:
    """Give the value back to the schedule that the training script made."""

    parameter: str
    group: str = ""
    op: Literal["release"] = "release"
    operation = Operation.RELEASE


Change = SetChange | MultiplyChange | RampChange | ScheduleChange | ReleaseChange
