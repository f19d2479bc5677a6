"""Live parameters: what a job's trainer declares, and which changes that allows."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

from control_plane.domain.errors import Reason, Refusal, Violation

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


def check_changes(
    changes: Iterable[Change],
    specs: Iterable[ParameterSpec],
    *,
    in_force: Mapping[tuple[str, str], Value],
    principal: str,
    force: bool,
    field: str = "spec.changes",
) -> None:
    """Refuses changes that the job's declared capabilities do not allow.

    Args:
        changes: What is asked for.
        specs: What the job's trainer declared.
        in_force: Values last confirmed, by (parameter, group); group "" for the whole.
        principal: Who asks.
        force: Override soft guard rails.
        field: Path of `changes` in the request.

    Raises:
        Refusal: With one violation for each fault found. Its reason is that of
            the first fault.
    """
    known = {spec.name: spec for spec in specs}
    faults: list[tuple[Reason, Violation]] = []
    seen: set[tuple[str, str]] = set()
    for index, change in enumerate(changes):
        where = f"{field}[{index}]"
        key = (change.parameter, change.group)
        if key in seen:
            faults.append(
                (
                    Reason.INVALID_ARGUMENT,
                    Violation(
                        f"{where}.parameter",
                        f"got {change.parameter!r} twice; an update changes a parameter once",
                    ),
                )
            )
            continue
        seen.add(key)
        spec = known.get(change.parameter)
        if spec is None:
            names = ", ".join(sorted(n for n, s in known.items() if not s.unavailable_reason))
            faults.append(
                (
                    Reason.PARAMETER_UNKNOWN,
                    Violation(
                        f"{where}.parameter",
                        f"got {change.parameter!r}, this job offers: {names or 'nothing'}",
                    ),
                )
            )
            continue
        faults += [
            (reason, Violation(f"{where}{suffix}", text))
            for reason, suffix, text in _faults(change, spec, in_force, principal, force=force)
        ]
    if faults:
        raise Refusal(
            faults[0][0],
            "; ".join(f"{violation.field}: {violation.description}" for _, violation in faults),
            violations=[violation for _, violation in faults],
        )


_Fault = tuple[Reason, str, str]


def _faults(
    change: Change,
    spec: ParameterSpec,
    in_force: Mapping[tuple[str, str], Value],
    principal: str,
    *,
    force: bool,
) -> list[_Fault]:
    """Everything wrong with one change, as (reason, path below the change, description)."""
    name = spec.name
    if spec.unavailable_reason:
        return [
            (
                Reason.PARAMETER_UNAVAILABLE,
                ".parameter",
                f"{name} can not be changed in this job: {spec.unavailable_reason}",
            )
        ]
    rails = spec.rails
    if rails.frozen:
        return [(Reason.PARAMETER_FROZEN, ".parameter", f"{name} is frozen by the job's owner")]
    if rails.allowed_principals and principal not in rails.allowed_principals:
        return [
            (
                Reason.NOT_ALLOWED,
                ".parameter",
                f"{principal!r} may not change {name}; the job's owner allows: "
                + ", ".join(rails.allowed_principals),
            )
        ]
    if change.operation not in spec.operations:
        offered = ", ".join(spec.operations)
        return [
            (
                Reason.OPERATION_UNSUPPORTED,
                "",
                f"{name} does not offer {change.operation}; it offers: {offered}",
            )
        ]
    faults: list[_Fault] = []
    if change.group and change.group not in spec.groups:
        groups = ", ".join(spec.groups) or "none"
        faults.append(
            (Reason.INVALID_ARGUMENT, ".group", f"got {change.group!r}, groups of {name}: {groups}")
        )
    faults += [(Reason.INVALID_ARGUMENT, *fault) for fault in _shape_faults(change, spec)]
    if faults:
        return faults
    targets = _targets(change)
    for suffix, target in targets:
        if (text := spec.bounds.objection(target)) is not None:
            faults.append((Reason.INVALID_ARGUMENT, suffix, f"{text} (hard limit)"))
        elif rails.bounds is not None and (text := rails.bounds.objection(target)) is not None:
            faults.append((Reason.GUARD_RAIL, suffix, f"{text} (limit set by the job's owner)"))
    if faults or force or rails.max_relative_change is None:
        return faults
    # Where the value of a group is not known, no factor follows from that of the whole.
    current = in_force.get((name, change.group))
    for suffix, factor in _relative_changes(change, current, targets):
        limit = rails.max_relative_change
        if factor > limit * (1 + 1e-9) or factor * limit * (1 + 1e-9) < 1:
            faults.append(
                (
                    Reason.GUARD_RAIL,
                    suffix,
                    f"this is {factor:.3g} times the value in force"
                    + (f" ({current:g})" if isinstance(current, int | float) else "")
                    + f", allowed: {1 / limit:g} to {limit:g} times; use force to override",
                )
            )
    return faults


def _shape_faults(change: Change, spec: ParameterSpec) -> list[tuple[str, str]]:
    """Faults of type and form, as (path, description)."""
    match change:
        case SetChange():
            faults = _value_faults(".set.value", change.value, spec)
            if change.mode != "hold" and change.hold_steps is not None:
                faults.append((".set.hold_steps", f"got {change.hold_steps}, only for mode hold"))
            elif change.hold_steps is not None and change.hold_steps < 1:
                faults.append((".set.hold_steps", f"got {change.hold_steps}, at least 1"))
            return faults
        case MultiplyChange():
            if not math.isfinite(change.factor) or change.factor <= 0:
                text = f"got {change.factor:g}, allowed: finite and above 0"
                return [(".multiply.factor", text)]
            return []
        case RampChange():
            faults = _value_faults(".ramp.value", change.value, spec)
            if change.steps < 1:
                faults.append((".ramp.steps", f"got {change.steps}, at least 1"))
            return faults
        case ScheduleChange():
            faults = []
            if change.peak is not None and not math.isfinite(change.peak):
                faults.append((".schedule.peak", f"got {change.peak:g}, allowed: finite"))
            if not math.isfinite(change.floor) or change.floor < 0:
                faults.append(
                    (".schedule.floor", f"got {change.floor:g}, allowed: finite, at least 0")
                )
            elif change.peak is not None and change.floor > change.peak:
                faults.append(
                    (".schedule.floor", f"got {change.floor:g}, at most the peak {change.peak:g}")
                )
            if change.steps is not None and change.steps < max(1, change.warmup_steps):
                faults.append(
                    (
                        ".schedule.steps",
                        (
                            f"got {change.steps}, at least 1 and at least warmup_steps "
                            f"({change.warmup_steps})"
                        ),
                    )
                )
            return faults
        case ReleaseChange():
            return []


def _value_faults(path: str, value: Value, spec: ParameterSpec) -> list[tuple[str, str]]:
    """Whether a value has the parameter's type and is finite."""
    got = f"got {value!r} ({type(value).__name__})"
    match spec.kind:
        case Kind.NUMBER:
            if isinstance(value, bool) or not isinstance(value, int | float):
                return [(path, f"{got}, allowed: a number")]
            if not math.isfinite(value):
                return [(path, f"got {value}, allowed: a finite number, {spec.bounds}")]
        case Kind.INTEGER:
            if isinstance(value, bool) or not isinstance(value, int):
                return [(path, f"{got}, allowed: a whole number")]
        case Kind.BOOLEAN:
            if not isinstance(value, bool):
                return [(path, f"{got}, allowed: true or false")]
        case Kind.TEXT:
            if not isinstance(value, str):
                return [(path, f"{got}, allowed: a text")]
    return []


def _targets(change: Change) -> list[tuple[str, Value]]:
    """The absolute values that a change aims at, with their paths."""
    match change:
        case SetChange():
            return [(".set.value", change.value)]
        case RampChange():
            return [(".ramp.value", change.value)]
        case ScheduleChange():
            return [(".schedule.peak", change.peak)] if change.peak is not None else []
        case _:
            return []


def _relative_changes(
    change: Change, current: Value | None, targets: list[tuple[str, Value]]
) -> list[tuple[str, float]]:
    """By which factor the value in force would change; nothing where that is unknown.

    A peak is a base value, not the value in force, so no factor follows from it.
    """
    if isinstance(change, MultiplyChange):
        return [(".multiply.factor", change.factor)]
    if isinstance(change, SetChange) and change.mode == "peak":
        return []
    if isinstance(current, bool | str) or current is None or current <= 0:
        return []
    return [
        (suffix, target / current)
        for suffix, target in targets
        if isinstance(target, int | float) and not isinstance(target, bool)
    ]
