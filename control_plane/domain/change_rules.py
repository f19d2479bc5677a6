"""Which changes a job's declared parameters allow; each fault with its reason and its field."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Final

from control_plane.domain.errors import Reason, Refusal, Violation
from control_plane.domain.parameter import (
    Change,
    Coupling,
    Kind,
    MultiplyChange,
    ParameterSpec,
    RampChange,
    ReleaseChange,
    ScheduleChange,
    SetChange,
    Value,
)

LEARNING_RATE: Final = "learning_rate"
BATCH_PARAMETERS: Final = (
    "gradient_accumulation_steps",
    "global_batch_size",
    "per_device_train_batch_size",
)
"""The parameters whose change the learning rate can follow."""


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
    guarding = partial(_faults, in_force=in_force, principal=principal, force=force)
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
            for reason, suffix, text in (
                guarding(change, spec)
                or _coupled_faults(change, known.get(LEARNING_RATE), in_force, guarding)
            )
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
    *,
    in_force: Mapping[tuple[str, str], Value],
    principal: str,
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
    # Where the value of a group is not known, nothing follows from that of the whole.
    current = in_force.get((name, change.group))
    targets = _targets(change)
    for suffix, target in [*targets, *_reached(change, current)]:
        if (text := spec.bounds.objection(target)) is not None:
            faults.append((Reason.INVALID_ARGUMENT, suffix, f"{text} (hard limit)"))
        elif rails.bounds is not None and (text := rails.bounds.objection(target)) is not None:
            faults.append((Reason.GUARD_RAIL, suffix, f"{text} (limit set by the job's owner)"))
    if faults or force or rails.max_relative_change is None:
        return faults
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
            if change.coupling is not Coupling.NONE and spec.name not in BATCH_PARAMETERS:
                batch = ", ".join(BATCH_PARAMETERS)
                text = f"got {change.coupling}, which goes with a batch size: {batch}"
                faults.append((".coupling", text))
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


def _reached(change: Change, current: Value | None) -> list[tuple[str, Value]]:
    """More values that come to be in force, where they are known: products, ends of schedules."""
    match change:
        case MultiplyChange():
            if isinstance(current, bool | str) or current is None or current <= 0:
                return []
            return [(".multiply.factor", current * change.factor)]
        case ScheduleChange():
            return [(".schedule.floor", change.floor)]
        case _:
            return []


def _coupled_faults(
    change: Change,
    learning_rate: ParameterSpec | None,
    in_force: Mapping[tuple[str, str], Value],
    guarding: Callable[[Change, ParameterSpec], list[_Fault]],
) -> list[_Fault]:
    """What is wrong with what a coupling does to the learning rate, which has rails of its own."""
    if not isinstance(change, SetChange) or change.coupling is Coupling.NONE:
        return []
    if learning_rate is None:
        text = f"got {change.coupling}, but this job offers no {LEARNING_RATE} that could follow"
        return [(Reason.PARAMETER_UNKNOWN, ".coupling", text)]
    factor = coupled_factor(change, in_force)
    # Where it is unknown, nothing is known to be wrong with it.
    scaled = MultiplyChange(LEARNING_RATE, 1.0 if factor is None else factor)
    return [
        (reason, ".coupling", f"{LEARNING_RATE} would follow: {text}")
        for reason, _, text in guarding(scaled, learning_rate)
    ]


def coupled_factor(change: SetChange, in_force: Mapping[tuple[str, str], Value]) -> float | None:
    """By what a coupling scales the learning rate; None where the size in force is unknown."""
    current = in_force.get((change.parameter, change.group))
    if isinstance(current, str) or not current or isinstance(change.value, str):
        return None
    ratio = change.value / current
    return math.sqrt(ratio) if change.coupling is Coupling.SQRT else ratio


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
