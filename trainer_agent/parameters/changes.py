"""What can be asked of a live parameter: the changes, in words that no wire format knows."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import TypeAlias

Value: TypeAlias = float | int | bool | str
"""What a parameter can hold."""


class Operation(enum.StrEnum):
    """What can be asked of a parameter."""

    SET = "set"
    PEAK = "peak"
    HOLD = "hold"
    MULTIPLY = "multiply"
    RAMP = "ramp"
    SCHEDULE = "schedule"
    RELEASE = "release"


class Coupling(enum.StrEnum):
    """How the learning rate follows a change of batch size, in the same transaction."""

    NONE = "none"
    LINEAR = "linear"
    """In proportion to the batch size (Goyal et al., 2017, arXiv:1706.02677)."""
    SQRT = "sqrt"
    """In proportion to its square root (Krizhevsky, 2014, arXiv:1404.5997)."""


class SetMode(enum.StrEnum):
    """What setting a value means where a schedule runs underneath."""

    DEFAULT = "default"
    """The next step uses exactly this value; the schedule keeps its shape, scaled, from there."""
    PEAK = "peak"
    """The value that the schedule was built around becomes this."""
    HOLD = "hold"
    """Constant at this value, for a number of steps or until released."""


class Shape(enum.StrEnum):
    """The curve of a schedule after its warm-up."""

    LINEAR = "linear"
    COSINE = "cosine"
    CONSTANT = "constant"


@dataclass(frozen=True, slots=True)
class Set:
    """Set a parameter to a value.

    Raises:
        ValueError: There is no such mode.
    """

    parameter: str
    value: Value
    mode: SetMode = SetMode.DEFAULT
    hold_steps: int | None = None
    """For ``SetMode.HOLD``: the number of optimizer steps; None: until released."""
    group: str | None = None
    """One parameter group, by name or by index; None: all, their ratios kept."""
    coupling: Coupling = Coupling.NONE

    def __post_init__(self) -> None:
        object.__setattr__(self, "mode", SetMode(self.mode))


@dataclass(frozen=True, slots=True)
class Multiply:
    """Scale whatever is in force, and all that follows from it, by a factor."""

    parameter: str
    factor: float
    group: str | None = None
    coupling: Coupling = Coupling.NONE


@dataclass(frozen=True, slots=True)
class Ramp:
    """Move in a straight line to a value, which the last of ``steps`` steps uses exactly."""

    parameter: str
    value: float
    steps: int
    """Optimizer steps, at least 1."""
    group: str | None = None


@dataclass(frozen=True, slots=True)
class Schedule:
    """Follow a new schedule from here on.

    Raises:
        ValueError: There is no such shape.
    """

    parameter: str
    shape: Shape
    peak: float | None = None
    """The value after the warm-up; None: the value now in force."""
    warmup_steps: int = 0
    """Optimizer steps from the value now in force to the peak."""
    floor: float = 0.0
    """The value at the schedule's end."""
    steps: int | None = None
    """The schedule's length in optimizer steps; None: all that remain of the run."""
    group: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", Shape(self.shape))


@dataclass(frozen=True, slots=True)
class Release:
    """Give the value back to what would have set it had nobody interfered."""

    parameter: str
    group: str | None = None


Change: TypeAlias = Set | Multiply | Ramp | Schedule | Release


def operation_of(change: Change) -> Operation:
    """Return the operation that a change asks for."""
    match change:
        case Set(mode=SetMode.DEFAULT):
            return Operation.SET
        case Set(mode=SetMode.PEAK):
            return Operation.PEAK
        case Set():
            return Operation.HOLD
        case Multiply():
            return Operation.MULTIPLY
        case Ramp():
            return Operation.RAMP
        case Schedule():
            return Operation.SCHEDULE
        case Release():
            return Operation.RELEASE
