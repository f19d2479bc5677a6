"""What changes come to, as far as it follows from the values in force: targets, factors."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Final, NamedTuple

from control_plane.domain.parameter import (
    Change,
    Coupling,
    MultiplyChange,
    RampChange,
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

_MOVED_BY: Final[Mapping[str, tuple[str, ...]]] = {
    "gradient_accumulation_steps": ("global_batch_size",),
    "per_device_train_batch_size": ("global_batch_size",),
    "global_batch_size": ("gradient_accumulation_steps",),
}
"""Batch parameters that another one takes with it."""


class Effect(NamedTuple):
    """What an update does to one parameter, asked for or by a coupling."""

    path: str
    change: Change
    known: bool = True
    """Whether it is known by how much."""


def targets(change: Change) -> list[tuple[str, Value]]:
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


def reached(change: Change, current: Value | None) -> list[tuple[str, Value]]:
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


def relative_changes(change: Change, current: Value | None) -> list[tuple[str, float]]:
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
        for suffix, target in targets(change)
        if isinstance(target, int | float) and not isinstance(target, bool)
    ]


def moves(changed: tuple[str, str], other: tuple[str, str]) -> bool:
    """Whether a change moves a value, perhaps; both are told by parameter and group.

    A change of the whole moves every group, and that of a group what is shown of the whole.
    """
    if other[0] in _MOVED_BY.get(changed[0], ()):
        return True
    return changed[0] == other[0] and (changed[1] == other[1] or "" in {changed[1], other[1]})


def coupled_factor(change: SetChange, in_force: Mapping[tuple[str, str], Value]) -> float | None:
    """By what a coupling scales the learning rate; None where the size in force is unknown."""
    current = in_force.get((change.parameter, change.group))
    if isinstance(current, str) or not current or isinstance(change.value, str):
        return None
    ratio = change.value / current
    return math.sqrt(ratio) if change.coupling is Coupling.SQRT and ratio > 0 else ratio


def following(
    change: SetChange,
    earlier: Iterable[Change],
    in_force: Mapping[tuple[str, str], Value],
    path: str,
) -> Effect:
    """What a coupling does to the learning rate."""
    moved = {name for each in earlier for name in _MOVED_BY.get(each.parameter, ())}
    factor = None if change.parameter in moved else coupled_factor(change, in_force)
    # Where it is unknown, nothing is known to be wrong with it.
    scaled = MultiplyChange(LEARNING_RATE, 1.0 if factor is None else factor)
    return Effect(path, scaled, factor is not None)


def factor_together(
    effects: Sequence[Effect], group: str, in_force: Mapping[tuple[str, str], Value]
) -> float | None:
    """By which factor changes in a row scale the value in force; None where that is unknown."""
    factor: float | None = 1.0
    for index, (_, change, is_known) in enumerate(effects):
        current = in_force.get((change.parameter, change.group))
        match change:
            case _ if not is_known:
                factor = None
            case MultiplyChange():
                factor = None if factor is None else factor * change.factor
            # A learning rate for all groups keeps their ratios.
            case _ if change.group == group or (change.parameter == LEARNING_RATE and not index):
                ratios = relative_changes(change, current)
                factor = ratios[0][1] if ratios else None
            case _:
                factor = None
    return factor
