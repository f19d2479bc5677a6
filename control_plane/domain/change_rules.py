"""Which changes a job's declared parameters allow; each fault with its reason and its field."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial

from control_plane.domain.change_effects import (
    BATCH_PARAMETERS,
    LEARNING_RATE,
    Effect,
    factor_together,
    following,
    reached,
    relative_changes,
    targets,
)
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
    changes, known = list(changes), {spec.name: spec for spec in specs}
    faults: list[tuple[Reason, Violation]] = []
    guarding = partial(_faults, in_force=in_force, principal=principal, force=force)
    seen: set[tuple[str, str]] = set()
    effects: list[Effect] = []
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
        found = guarding(change, spec)
        if not found:
            effects.append(Effect(f"{where}.{change.op}", change))
            if isinstance(change, SetChange) and change.coupling is not Coupling.NONE:
                follows = following(change, changes[:index], in_force, f"{where}.coupling")
                found = _coupled_faults(change, follows, known.get(LEARNING_RATE), guarding)
                effects.append(follows)
        faults += [(reason, Violation(f"{where}{suffix}", text)) for reason, suffix, text in found]
    if not faults:
        faults = list(_faults_together(effects, known, in_force, force=force))
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
    for suffix, target in [*targets(change), *reached(change, current)]:
        if (out := _out_of_bounds(spec, target)) is not None:
            faults.append((out[0], suffix, out[1]))
    if faults or force:
        return faults
    for suffix, factor in relative_changes(change, current):
        if (text := _too_far(factor, current, rails.max_relative_change)) is not None:
            faults.append((Reason.GUARD_RAIL, suffix, f"this is {text}"))
    return faults


def _out_of_bounds(spec: ParameterSpec, value: Value) -> tuple[Reason, str] | None:
    """Why a value can not be, and what is wrong with it; None where it is within all limits."""
    if (text := spec.bounds.objection(value)) is not None:
        return Reason.INVALID_ARGUMENT, f"{text} (hard limit)"
    rails = spec.rails
    if rails.bounds is not None and (text := rails.bounds.objection(value)) is not None:
        return Reason.GUARD_RAIL, f"{text} (limit set by the job's owner)"
    return None


def _too_far(factor: float, current: Value | None, limit: float | None) -> str | None:
    """What is wrong with scaling the value in force; None where that is within the limit."""
    if limit is None or (1 / limit <= factor * (1 + 1e-9) and factor <= limit * (1 + 1e-9)):
        return None
    return (
        f"{factor:.3g} times the value in force"
        + (f" ({current:g})" if isinstance(current, int | float) else "")
        + f", allowed: {1 / limit:g} to {limit:g} times; use force to override"
    )


def _faults_together(
    effects: Iterable[Effect],
    known: Mapping[str, ParameterSpec],
    in_force: Mapping[tuple[str, str], Value],
    *,
    force: bool,
) -> Iterator[tuple[Reason, Violation]]:
    """What is wrong with what several changes of one parameter come to, each of them being right.

    A coupling is one of them. Of one alone nothing more is said.
    """
    by_name: dict[str, list[Effect]] = {}
    for effect in effects:
        by_name.setdefault(effect.change.parameter, []).append(effect)
    for name, all_of_it in by_name.items():
        spec = known[name]
        for group in ("", *spec.groups):
            of_one = [effect for effect in all_of_it if effect.change.group in {"", group}]
            factor = factor_together(of_one, group, in_force)
            if len(of_one) < 2 or factor is None:
                continue
            current, wrong = in_force.get((name, group)), None
            if current is not None and not isinstance(current, bool | str):
                wrong = _out_of_bounds(spec, current * factor)
            if wrong is None and not force:
                text = _too_far(factor, current, spec.rails.max_relative_change)
                wrong = None if text is None else (Reason.GUARD_RAIL, text)
            if wrong is not None:
                of = f"{name} of group {group}" if group else name
                text = f"together with the changes before it, for {of} this is {wrong[1]}"
                yield wrong[0], Violation(of_one[-1].path, text)
                if not group:
                    break  # which goes for the groups as well


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


def _coupled_faults(
    change: SetChange,
    follows: Effect,
    learning_rate: ParameterSpec | None,
    guarding: Callable[[Change, ParameterSpec], list[_Fault]],
) -> list[_Fault]:
    """What is wrong with what a coupling does to the learning rate, which has rails of its own."""
    if learning_rate is None:
        text = f"got {change.coupling}, but this job offers no {LEARNING_RATE} that could follow"
        return [(Reason.PARAMETER_UNKNOWN, ".coupling", text)]
    return [
        (reason, ".coupling", f"{LEARNING_RATE} would follow: {text}")
        for reason, _, text in guarding(follows.change, learning_rate)
    ]
