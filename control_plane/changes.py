"""Changes of live parameters, for :meth:`control_plane.client.Client.update_parameters`.

>>> from control_plane import changes
>>> change = changes.hold("learning_rate", 5e-5, steps=100)
"""

from __future__ import annotations

import numbers
from typing import Final, Literal, TypeAlias

from midcourse.control.v1 import parameter_pb2, update_pb2

ParameterValue: TypeAlias = bool | int | float | str | parameter_pb2.Value
"""A value as Python has it; a bool is a switch, never a number."""

Mode: TypeAlias = Literal["set", "peak", "hold"]
Shape: TypeAlias = Literal["linear", "cosine", "constant"]
Coupling: TypeAlias = Literal["none", "linear", "sqrt"]

_MODES: Final = {
    "set": update_pb2.SET_MODE_UNSPECIFIED,
    "peak": update_pb2.SET_MODE_PEAK,
    "hold": update_pb2.SET_MODE_HOLD,
}
_SHAPES: Final = {
    "linear": update_pb2.SCHEDULE_SHAPE_LINEAR,
    "cosine": update_pb2.SCHEDULE_SHAPE_COSINE,
    "constant": update_pb2.SCHEDULE_SHAPE_CONSTANT,
}
_COUPLINGS: Final = {
    "none": update_pb2.COUPLING_UNSPECIFIED,
    "linear": update_pb2.COUPLING_LINEAR,
    "sqrt": update_pb2.COUPLING_SQRT,
}
_INTEGER_LIMIT: Final = 2**63


def set_value(
    parameter: str,
    value: ParameterValue,
    *,
    mode: Mode = "set",
    hold_steps: int | None = None,
    group: str = "",
    coupling: Coupling = "none",
) -> update_pb2.Change:
    """Sets a parameter.

    Args:
        parameter: Name, such as ``learning_rate``.
        value: In the parameter's unit.
        mode: ``set``: the next step uses the value, a schedule keeps its shape from there on;
            ``peak``: the base value of the schedule; ``hold``: constant.
        hold_steps: With ``hold``, for how many optimizer steps; None: until released.
        group: One parameter group of the optimizer; empty: all, their ratios kept.
        coupling: With a batch size, how the learning rate follows it: not, in proportion, or in
            proportion to its square root.

    Raises:
        ValueError: ``hold_steps`` without ``hold``, or an integer that does not fit in 64 bits.
        TypeError: The value has no type that a parameter can have.
    """
    if hold_steps is not None and mode != "hold":
        raise ValueError(f"hold_steps goes with mode 'hold', not {mode!r}")
    change = update_pb2.SetChange(value=to_value(value), mode=_MODES[mode], hold_steps=hold_steps)
    return update_pb2.Change(
        parameter=parameter, group=group, set=change, coupling=_COUPLINGS[coupling]
    )


def hold(
    parameter: str, value: ParameterValue, *, steps: int | None = None, group: str = ""
) -> update_pb2.Change:
    """Holds a parameter constant for some optimizer steps, or until it is released."""
    return set_value(parameter, value, mode="hold", hold_steps=steps, group=group)


def multiply(parameter: str, factor: float, *, group: str = "") -> update_pb2.Change:
    """Scales the value in force and what is left of its schedule."""
    change = update_pb2.MultiplyChange(factor=factor)
    return update_pb2.Change(parameter=parameter, group=group, multiply=change)


def ramp(
    parameter: str, value: ParameterValue, *, steps: int, group: str = ""
) -> update_pb2.Change:
    """Goes linearly to a value over a number of optimizer steps, then on as after a set."""
    change = update_pb2.RampChange(value=to_value(value), steps=steps)
    return update_pb2.Change(parameter=parameter, group=group, ramp=change)


def schedule(
    parameter: str,
    shape: Shape,
    *,
    peak: float | None = None,
    warmup_steps: int = 0,
    floor: float = 0.0,
    steps: int | None = None,
    group: str = "",
) -> update_pb2.Change:
    """Follows a new schedule from here.

    Args:
        parameter: Name, such as ``learning_rate``.
        shape: Form after the warm-up, from the peak to the floor.
        peak: Highest value; None: the value in force.
        warmup_steps: Optimizer steps of linear warm-up from the value in force to the peak.
        floor: Lowest value, at the end.
        steps: Length with warm-up, in optimizer steps; None: all that remain.
        group: One parameter group of the optimizer; empty: all, their ratios kept.
    """
    change = update_pb2.ScheduleChange(
        shape=_SHAPES[shape], peak=peak, warmup_steps=warmup_steps, floor=floor, steps=steps
    )
    return update_pb2.Change(parameter=parameter, group=group, schedule=change)


def release(parameter: str, *, group: str = "") -> update_pb2.Change:
    """Gives the value back to the schedule that the training script made."""
    return update_pb2.Change(parameter=parameter, group=group, release=update_pb2.ReleaseChange())


def to_value(value: ParameterValue) -> parameter_pb2.Value:
    """Wraps a Python value; numbers of other libraries count as what they are.

    Raises:
        ValueError: An integer that does not fit in 64 bits.
        TypeError: The value has no type that a parameter can have.
    """
    if isinstance(value, parameter_pb2.Value):
        return value
    raw: object = value  # numbers of other libraries are no subclasses of int and float
    if isinstance(raw, bool):
        return parameter_pb2.Value(boolean=raw)
    if isinstance(raw, str):
        return parameter_pb2.Value(text=raw)
    if isinstance(raw, numbers.Integral):
        if not -_INTEGER_LIMIT <= int(raw) < _INTEGER_LIMIT:
            raise ValueError(f"{raw} does not fit in 64 bits")
        return parameter_pb2.Value(integer=int(raw))
    if isinstance(raw, numbers.Real):
        return parameter_pb2.Value(number=float(raw))
    raise TypeError(f"a parameter is a number, a bool or a str, got {type(raw).__name__}")


def from_value(value: parameter_pb2.Value) -> bool | int | float | str | None:
    """Unwraps a value; None: unknown."""
    kind = value.WhichOneof("kind")
    if kind is None:
        return None
    unwrapped: bool | int | float | str = getattr(value, kind)
    return unwrapped
