"""Protobuf to live parameters and back. The only place that knows both."""

from __future__ import annotations

from collections.abc import Sequence

from midcourse.control.v1 import parameter_pb2, update_pb2
from trainer_agent.parameters import (
    EVERY_GROUP,
    Applied,
    BoundaryKind,
    Change,
    Coupling,
    GuardRails,
    Kind,
    Multiply,
    Operation,
    ParameterSpec,
    Ramp,
    Reading,
    Refused,
    Release,
    Schedule,
    Set,
    SetMode,
    Shape,
    Value,
)

_KINDS = {
    Kind.FLOAT: parameter_pb2.PARAMETER_KIND_NUMBER,
    Kind.INT: parameter_pb2.PARAMETER_KIND_INTEGER,
    Kind.BOOL: parameter_pb2.PARAMETER_KIND_BOOLEAN,
    Kind.STRING: parameter_pb2.PARAMETER_KIND_TEXT,
    Kind.ENUM: parameter_pb2.PARAMETER_KIND_TEXT,
}
_BOUNDARIES = {
    BoundaryKind.STEP: parameter_pb2.BOUNDARY_STEP,
    BoundaryKind.ACCUMULATION: parameter_pb2.BOUNDARY_ACCUMULATION,
    BoundaryKind.EPOCH: parameter_pb2.BOUNDARY_EPOCH,
    BoundaryKind.GENERATION: parameter_pb2.BOUNDARY_GENERATION,
}
_OPERATIONS = {
    Operation.SET: parameter_pb2.OPERATION_SET,
    Operation.PEAK: parameter_pb2.OPERATION_PEAK,
    Operation.HOLD: parameter_pb2.OPERATION_HOLD,
    Operation.MULTIPLY: parameter_pb2.OPERATION_MULTIPLY,
    Operation.RAMP: parameter_pb2.OPERATION_RAMP,
    Operation.SCHEDULE: parameter_pb2.OPERATION_SCHEDULE,
    Operation.RELEASE: parameter_pb2.OPERATION_RELEASE,
}
_MODES = {
    update_pb2.SET_MODE_UNSPECIFIED: SetMode.DEFAULT,
    update_pb2.SET_MODE_PEAK: SetMode.PEAK,
    update_pb2.SET_MODE_HOLD: SetMode.HOLD,
}
_SHAPES = {
    update_pb2.SCHEDULE_SHAPE_LINEAR: Shape.LINEAR,
    update_pb2.SCHEDULE_SHAPE_COSINE: Shape.COSINE,
    update_pb2.SCHEDULE_SHAPE_CONSTANT: Shape.CONSTANT,
}
_COUPLINGS = {
    update_pb2.COUPLING_UNSPECIFIED: Coupling.NONE,
    update_pb2.COUPLING_LINEAR: Coupling.LINEAR,
    update_pb2.COUPLING_SQRT: Coupling.SQRT,
}
_TO_MODES = {mode: number for number, mode in _MODES.items()}
_TO_SHAPES = {shape: number for number, shape in _SHAPES.items()}
_TO_COUPLINGS = {coupling: number for number, coupling in _COUPLINGS.items()}


def change_from_proto(change: update_pb2.Change) -> Change:
    """Return a change as the live parameters understand it.

    Raises:
        Refused: It says nothing, or something that this version does not know.
    """
    name, group = change.parameter, change.group or None
    coupling = _COUPLINGS.get(change.coupling)
    if coupling is None:
        raise Refused(
            "COUPLING_UNSUPPORTED",
            f"the change of {name} asks for coupling {change.coupling} to the learning rate, which "
            "this trainer does not know; it knows: " + ", ".join(Coupling),
        )
    operation = change.WhichOneof("operation")
    if coupling is not Coupling.NONE and operation not in {"set", "multiply"}:
        raise Refused(
            "COUPLING_UNSUPPORTED",
            f"the change of {name} asks for a coupling to the learning rate, which only set and "
            "multiply can have",
        )
    match operation:
        case "set":
            mode = _MODES.get(change.set.mode)
            if mode is None:
                raise _unknown(name, "set mode", change.set.mode)
            steps = change.set.hold_steps if change.set.HasField("hold_steps") else None
            value = _required_value(name, change.set.value)
            return Set(name, value, mode=mode, hold_steps=steps, group=group, coupling=coupling)
        case "multiply":
            return Multiply(name, change.multiply.factor, group=group, coupling=coupling)
        case "ramp":
            target = _required_value(name, change.ramp.value)
            if isinstance(target, str):
                raise Refused("INVALID_TYPE", f"a ramp of {name} needs a number, got {target!r}")
            return Ramp(name, target, change.ramp.steps, group=group)
        case "schedule":
            asked = change.schedule
            shape = _SHAPES.get(asked.shape)
            if shape is None:
                raise _unknown(name, "schedule shape", asked.shape)
            return Schedule(
                name,
                shape,
                peak=asked.peak if asked.HasField("peak") else None,
                warmup_steps=asked.warmup_steps,
                floor=asked.floor,
                steps=asked.steps if asked.HasField("steps") else None,
                group=group,
            )
        case "release":
            return Release(name, group=group)
        case _:
            raise Refused(
                "UNKNOWN_OPERATION",
                f"the change of {name} asks for no operation that this trainer knows; it knows: "
                + ", ".join(sorted(operation.value for operation in Operation)),
            )


def change_to_proto(change: Change) -> update_pb2.Change:
    """Return a change as a message; ``change_from_proto`` reads it back."""
    message = update_pb2.Change(parameter=change.parameter, group=change.group or "")
    match change:
        case Set():
            message.set.value.CopyFrom(_value(change.value))
            message.set.mode = _TO_MODES[change.mode]
            if change.hold_steps is not None:
                message.set.hold_steps = change.hold_steps
            message.coupling = _TO_COUPLINGS[change.coupling]
        case Multiply():
            message.multiply.factor = change.factor
            message.coupling = _TO_COUPLINGS[change.coupling]
        case Ramp():
            message.ramp.value.CopyFrom(_value(change.value))
            message.ramp.steps = change.steps
        case Schedule():
            asked = message.schedule
            asked.shape = _TO_SHAPES[change.shape]
            asked.warmup_steps, asked.floor = change.warmup_steps, change.floor
            if change.peak is not None:
                asked.peak = change.peak
            if change.steps is not None:
                asked.steps = change.steps
        case Release():
            message.release.SetInParent()
    return message


def spec_to_proto(
    spec: ParameterSpec, unavailable_reason: str | None = None
) -> parameter_pb2.ParameterSpec:
    """Return what a parameter declares about itself.

    Args:
        spec: The declaration.
        unavailable_reason: Why nothing can be changed in this run, whatever the parameter says;
            None: nothing stands in the way.
    """
    reason = unavailable_reason or spec.unavailable_reason
    offered = () if reason else sorted(_OPERATIONS[operation] for operation in spec.operations)
    return parameter_pb2.ParameterSpec(
        name=spec.name,
        kind=_KINDS[spec.kind],
        unit=spec.unit,
        bounds=parameter_pb2.Bounds(
            minimum=spec.minimum,
            maximum=spec.maximum,
            minimum_exclusive=spec.minimum_exclusive,
            maximum_exclusive=spec.maximum_exclusive,
            allowed_texts=spec.choices,
        ),
        boundary=_BOUNDARIES[spec.boundary],
        operations=offered,
        groups=spec.groups,
        current_value=value_to_proto(spec.current),
        unavailable_reason=reason or "",
        description=spec.description,
        guard_rails=None if spec.guard_rails is None else _guard_rails(spec.guard_rails),
    )


def _guard_rails(rails: GuardRails) -> parameter_pb2.GuardRails:
    bounds = None
    if rails.minimum is not None or rails.maximum is not None:
        bounds = parameter_pb2.Bounds(minimum=rails.minimum, maximum=rails.maximum)
    return parameter_pb2.GuardRails(
        bounds=bounds,
        max_relative_change=rails.max_relative_change,
        frozen=rails.frozen,
        allowed_principals=rails.allowed_principals,
    )


def value_to_proto(value: Value | None) -> parameter_pb2.Value | None:
    """Return a value as a message; None, for unknown, stays None."""
    return None if value is None else _value(value)


def _value(value: Value) -> parameter_pb2.Value:
    match value:
        case bool():
            return parameter_pb2.Value(boolean=value)
        case int():
            return parameter_pb2.Value(integer=value)
        case float():
            return parameter_pb2.Value(number=value)
        case str():
            return parameter_pb2.Value(text=value)


def readings_to_proto(name: str, reading: Reading) -> list[update_pb2.ParameterReading]:
    """Return a parameter's values, one message for each group."""
    return [
        update_pb2.ParameterReading(parameter=name, group=group, value=value_to_proto(value))
        for group, value in reading.by_group.items()
    ]


def transitions_to_proto(applied: Sequence[Applied]) -> list[update_pb2.ParameterTransition]:
    """Return old and new value of everything that an update's changes moved.

    Where several changes moved the same value, its old value is that before the first and its new
    one that after the last. A group that a change was not for and that did not move is left out.
    """
    old: dict[tuple[str, str], Value | None] = {}
    new: dict[tuple[str, str], Value | None] = {}
    for each in applied:
        name, meant = each.change.parameter, each.change.group
        for group, value in each.new.by_group.items():
            before = each.old.by_group.get(group)
            if meant in {None, group, EVERY_GROUP} or before != value or (name, group) in new:
                old.setdefault((name, group), before)
                new[name, group] = value
    return [
        update_pb2.ParameterTransition(
            parameter=name,
            group=group,
            old_value=value_to_proto(old[name, group]),
            new_value=value_to_proto(value),
        )
        for (name, group), value in new.items()
    ]


def _required_value(name: str, value: parameter_pb2.Value) -> Value:
    match value.WhichOneof("kind"):
        case "number":
            return value.number
        case "integer":
            return value.integer
        case "boolean":
            return value.boolean
        case "text":
            return value.text
        case _:
            raise Refused("INVALID_VALUE", f"the change of {name} has no value; give one")


def _unknown(name: str, what: str, got: int) -> Refused:
    return Refused(
        "UNKNOWN_OPERATION",
        f"the change of {name} asks for {what} {got}, which this trainer does not know",
    )
