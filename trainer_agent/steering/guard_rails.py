"""The owner's limits, enforced where a change is made.

The control plane enforces them when it takes an update. This is the second line: what was accepted
before the limits were declared, or comes from elsewhere, is stopped here.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

from trainer_agent.parameters import (
    Applied,
    Change,
    GuardRails,
    LiveParameter,
    Multiply,
    Ramp,
    Refused,
    Release,
    Schedule,
    Set,
    SetMode,
    Value,
)

GUARD = "guard"
"""Author of what a run does by itself, as its owner had it do: only frozen and bounds hold then."""

_ROUNDING = 1 + 1e-9
# What is read back may have been rounded to the precision of a tensor.
_ROUNDING_IN_TENSORS = 1 + 1e-6


def check_names(rails: Mapping[str, GuardRails], parameters: Iterable[str]) -> None:
    """Say whether every limit is for a parameter that there is.

    Raises:
        ValueError: One is not.
    """
    known = sorted(parameters)
    unknown = sorted(rails.keys() - set(known))
    if unknown:
        raise ValueError(
            f"guard_rails names {', '.join(unknown)}, and this run has no such live parameter; it "
            f"has: {', '.join(known)}"
        )


def check_change(
    rails: GuardRails, change: Change, parameter: LiveParameter, author: str, *, force: bool
) -> None:
    """Say whether a change is within the owner's limits, before it is made.

    Args:
        rails: The limits of its parameter.
        change: What is asked for.
        parameter: The parameter, which tells the value in force.
        author: Who asks.
        force: Override ``max_relative_change``.

    Raises:
        Refused: It is not.
    """
    name = change.parameter
    current = _current(parameter, change.group)

    def refuse(reason: str, message: str) -> Refused:
        return Refused(reason, message, value_in_force=current)

    if rails.frozen:
        raise refuse("PARAMETER_FROZEN", f"{name} is frozen by the job's owner")
    if author != GUARD and rails.allowed_principals and author not in rails.allowed_principals:
        raise refuse(
            "NOT_ALLOWED",
            f"{author!r} may not change {name}; the job's owner allows: "
            + ", ".join(rails.allowed_principals),
        )
    for target in _targets(change):
        check_value(rails, name, target, current)
    limit = rails.max_relative_change
    factor = _factor(change, current)
    if force or author == GUARD or limit is None or factor is None:
        return
    try:
        _check_factor(name, factor, limit, current, _ROUNDING)
    except Refused as refused:
        refused.for_now = not isinstance(change, Multiply)
        raise


def check_made(rails: GuardRails, made: Sequence[Applied], author: str, *, force: bool) -> None:
    """Say whether what one update has made of one parameter is within the owner's limits.

    What several changes come to together counts here: a batch size may take the learning rate with
    it that the same update changes as well.

    Args:
        rails: The limits of the parameter.
        made: Its changes, in the order in which they were made; at least one.
        author: Who asked.
        force: Override ``max_relative_change``.

    Raises:
        Refused: It is not; all of it has to be taken back.
    """
    for applied in made:
        if isinstance(applied.change, Release):
            continue  # what the script itself had set
        for group, value in applied.new.by_group.items():
            if value is not None and value != applied.old.by_group.get(group):
                check_value(rails, applied.change.parameter, value, applied.old.by_group.get(group))
    last, limit = made[-1], rails.max_relative_change
    if limit is None or force or author == GUARD or isinstance(last.change, Release):
        return
    for group, before in made[0].old.by_group.items():
        factor = _ratio(last.new.by_group.get(group), before)
        if factor is not None:
            _check_factor(last.change.parameter, factor, limit, before, _ROUNDING_IN_TENSORS)


def check_value(rails: GuardRails, name: str, value: Value, current: Value | None) -> None:
    """Say whether a value is within the owner's bounds.

    Raises:
        Refused: It is not.
    """
    if isinstance(value, bool | str):
        return
    low, high = rails.minimum, rails.maximum
    if (low is not None and value < low) or (high is not None and value > high):
        allowed = [f"at least {low:g}"] if low is not None else []
        allowed += [f"at most {high:g}"] if high is not None else []
        raise Refused(
            "GUARD_RAIL",
            f"{name} would become {value:g}, and the job's owner allows {' and '.join(allowed)}",
            value_in_force=current,
        )


def _current(parameter: LiveParameter, group: str | None) -> Value | None:
    reading = parameter.read()
    return reading.value if group is None else reading.by_group.get(group)


def _targets(change: Change) -> list[Value]:
    match change:
        case Set(value=value) | Ramp(value=value):
            return [value]
        case Schedule(peak=peak) if peak is not None:
            return [peak]
        case _:
            return []


def _factor(change: Change, current: Value | None) -> float | None:
    """Return by which factor the value in force would change; None: that is not known yet.

    A peak is the base of a schedule and not the value in force: what it comes to is known when it
    is made.
    """
    if isinstance(change, Multiply):
        return change.factor
    if isinstance(change, Set) and change.mode is SetMode.PEAK:
        return None
    targets = _targets(change)
    return _ratio(targets[0], current) if targets else None


def _ratio(value: Value | None, current: Value | None) -> float | None:
    """Return how many times a value another one is; None: they are no such numbers."""
    if isinstance(current, bool | str) or current is None or current <= 0:
        return None
    if isinstance(value, bool | str) or value is None or not math.isfinite(value):
        return None
    return value / current


def _check_factor(
    name: str, factor: float, limit: float, current: Value | None, rounding: float
) -> None:
    """Say whether a value changes by no more than the owner allows.

    Raises:
        Refused: It would.
    """
    if not 1 / (limit * rounding) <= factor <= limit * rounding:
        raise Refused(
            "GUARD_RAIL",
            f"{name} would become {factor:.3g} times the value in force ({current!r}), and the "
            f"job's owner allows {1 / limit:g} to {limit:g} times; use force to override",
            value_in_force=current,
        )
