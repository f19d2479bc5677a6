"""Parameters and their values between protobuf and domain."""

from __future__ import annotations

from control_plane.domain.errors import invalid
from control_plane.domain.parameter import (
    Boundary,
    Bounds,
    GuardRails,
    Kind,
    Operation,
    ParameterSpec,
    Value,
)
from midcourse.control.v1 import parameter_pb2 as pb

_KINDS = {
    pb.PARAMETER_KIND_NUMBER: Kind.NUMBER,
    pb.PARAMETER_KIND_INTEGER: Kind.INTEGER,
    pb.PARAMETER_KIND_BOOLEAN: Kind.BOOLEAN,
    pb.PARAMETER_KIND_TEXT: Kind.TEXT,
}
_BOUNDARIES = {
    pb.BOUNDARY_STEP: Boundary.STEP,
    pb.BOUNDARY_ACCUMULATION: Boundary.ACCUMULATION,
    pb.BOUNDARY_EPOCH: Boundary.EPOCH,
    pb.BOUNDARY_GENERATION: Boundary.GENERATION,
}
_OPERATIONS = {
    pb.OPERATION_SET: Operation.SET,
    pb.OPERATION_PEAK: Operation.PEAK,
    pb.OPERATION_HOLD: Operation.HOLD,
    pb.OPERATION_MULTIPLY: Operation.MULTIPLY,
    pb.OPERATION_RAMP: Operation.RAMP,
    pb.OPERATION_SCHEDULE: Operation.SCHEDULE,
    pb.OPERATION_RELEASE: Operation.RELEASE,
}
_KINDS_OUT = {domain: proto for proto, domain in _KINDS.items()}
_BOUNDARIES_OUT = {domain: proto for proto, domain in _BOUNDARIES.items()}
_OPERATIONS_OUT = {domain: proto for proto, domain in _OPERATIONS.items()}


def value_of(proto: pb.Value) -> Value | None:
    """A value; None where none is set: unknown."""
    match proto.WhichOneof("kind"):
        case "number":
            return proto.number
        case "integer":
            return proto.integer
        case "boolean":
            return proto.boolean
        case "text":
            return proto.text
        case _:
            return None


def value(of: Value) -> pb.Value:
    """A value as protobuf."""
    if isinstance(of, bool):
        return pb.Value(boolean=of)
    if isinstance(of, int):
        return pb.Value(integer=of)
    if isinstance(of, str):
        return pb.Value(text=of)
    return pb.Value(number=of)


def bounds_of(proto: pb.Bounds) -> Bounds:
    """Limits of a value."""
    return Bounds(
        proto.minimum if proto.HasField("minimum") else None,
        proto.maximum if proto.HasField("maximum") else None,
        proto.minimum_exclusive,
        proto.maximum_exclusive,
        tuple(proto.allowed_texts),
    )


def bounds(of: Bounds) -> pb.Bounds:
    """Limits of a value as protobuf."""
    return pb.Bounds(
        minimum=of.minimum,
        maximum=of.maximum,
        minimum_exclusive=of.minimum_exclusive,
        maximum_exclusive=of.maximum_exclusive,
        allowed_texts=of.allowed_texts,
    )


def _rails_of(proto: pb.GuardRails) -> GuardRails:
    return GuardRails(
        bounds_of(proto.bounds) if proto.HasField("bounds") else None,
        proto.max_relative_change if proto.HasField("max_relative_change") else None,
        proto.frozen,
        tuple(proto.allowed_principals),
    )


def _rails(of: GuardRails) -> pb.GuardRails:
    return pb.GuardRails(
        bounds=bounds(of.bounds) if of.bounds is not None else None,
        max_relative_change=of.max_relative_change,
        frozen=of.frozen,
        allowed_principals=of.allowed_principals,
    )


def spec_of(proto: pb.ParameterSpec, field: str) -> ParameterSpec:
    """A declared parameter. Operations that this version does not know are left out.

    Raises:
        Refusal: If it has no name, or a kind that is not known.
    """
    if not proto.name:
        raise invalid(f"{field}.name", "got none; a parameter needs a name")
    if proto.kind not in _KINDS:
        raise invalid(f"{field}.kind", f"got {proto.kind}, allowed: 1 to {len(_KINDS)}")
    return ParameterSpec(
        name=proto.name,
        kind=_KINDS[proto.kind],
        unit=proto.unit,
        bounds=bounds_of(proto.bounds),
        boundary=_BOUNDARIES.get(proto.boundary, Boundary.STEP),
        operations=tuple(_OPERATIONS[o] for o in proto.operations if o in _OPERATIONS),
        groups=tuple(proto.groups),
        current_value=value_of(proto.current_value),
        unavailable_reason=proto.unavailable_reason,
        description=proto.description,
        guard_rails=_rails_of(proto.guard_rails) if proto.HasField("guard_rails") else None,
    )


def spec(of: ParameterSpec) -> pb.ParameterSpec:
    """A declared parameter as protobuf, with the guard rails in force."""
    return pb.ParameterSpec(
        name=of.name,
        kind=_KINDS_OUT[of.kind],
        unit=of.unit,
        bounds=bounds(of.bounds),
        boundary=_BOUNDARIES_OUT[of.boundary],
        operations=[_OPERATIONS_OUT[o] for o in of.operations],
        groups=of.groups,
        current_value=value(of.current_value) if of.current_value is not None else None,
        unavailable_reason=of.unavailable_reason,
        description=of.description,
        guard_rails=_rails(of.rails),
    )
