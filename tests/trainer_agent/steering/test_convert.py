from __future__ import annotations

import pytest

from midcourse.control.v1 import parameter_pb2, update_pb2
from trainer_agent.parameters import (
    EVERY_GROUP,
    Applied,
    Boundary,
    BoundaryKind,
    Change,
    Coupling,
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
from trainer_agent.steering.convert import (
    change_from_proto,
    change_to_proto,
    readings_to_proto,
    spec_to_proto,
    transitions_to_proto,
    value_to_proto,
)

NAME = "learning_rate"
NUMBER = parameter_pb2.Value(number=0.5)


@pytest.mark.parametrize(
    ("message", "change"),
    [
        (
            update_pb2.Change(parameter=NAME, set=update_pb2.SetChange(value=NUMBER)),
            Set(NAME, 0.5),
        ),
        (
            update_pb2.Change(
                parameter=NAME,
                group="1",
                set=update_pb2.SetChange(
                    value=parameter_pb2.Value(integer=3),
                    mode=update_pb2.SET_MODE_HOLD,
                    hold_steps=0,
                ),
            ),
            Set(NAME, 3, mode=SetMode.HOLD, hold_steps=0, group="1"),
        ),
        (
            update_pb2.Change(
                parameter=NAME,
                set=update_pb2.SetChange(
                    value=parameter_pb2.Value(boolean=False), mode=update_pb2.SET_MODE_PEAK
                ),
            ),
            Set(NAME, False, mode=SetMode.PEAK),
        ),
        (
            update_pb2.Change(
                parameter=NAME, set=update_pb2.SetChange(value=parameter_pb2.Value(text="x"))
            ),
            Set(NAME, "x"),
        ),
        (
            update_pb2.Change(parameter=NAME, multiply=update_pb2.MultiplyChange(factor=2.0)),
            Multiply(NAME, 2.0),
        ),
        (
            update_pb2.Change(
                parameter=NAME,
                multiply=update_pb2.MultiplyChange(factor=2.0),
                coupling=update_pb2.COUPLING_LINEAR,
            ),
            Multiply(NAME, 2.0, coupling=Coupling.LINEAR),
        ),
        (
            update_pb2.Change(
                parameter=NAME,
                set=update_pb2.SetChange(value=NUMBER),
                coupling=update_pb2.COUPLING_SQRT,
            ),
            Set(NAME, 0.5, coupling=Coupling.SQRT),
        ),
        (
            update_pb2.Change(parameter=NAME, ramp=update_pb2.RampChange(value=NUMBER, steps=4)),
            Ramp(NAME, 0.5, 4),
        ),
        (
            update_pb2.Change(
                parameter=NAME,
                schedule=update_pb2.ScheduleChange(
                    shape=update_pb2.SCHEDULE_SHAPE_COSINE,
                    peak=0.0,
                    warmup_steps=2,
                    floor=0.1,
                    steps=9,
                ),
            ),
            Schedule(NAME, Shape.COSINE, peak=0.0, warmup_steps=2, floor=0.1, steps=9),
        ),
        (
            update_pb2.Change(
                parameter=NAME,
                schedule=update_pb2.ScheduleChange(shape=update_pb2.SCHEDULE_SHAPE_LINEAR),
            ),
            Schedule(NAME, Shape.LINEAR),
        ),
        (
            update_pb2.Change(parameter=NAME, release=update_pb2.ReleaseChange()),
            Release(NAME),
        ),
    ],
)
def test_changes(message: update_pb2.Change, change: Change) -> None:
    converted = change_from_proto(message)
    assert converted == change
    assert type(getattr(converted, "value", None)) is type(getattr(change, "value", None))
    assert change_from_proto(change_to_proto(change)) == change


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (update_pb2.Change(parameter=NAME), "UNKNOWN_OPERATION"),
        (update_pb2.Change(parameter=NAME, set=update_pb2.SetChange()), "INVALID_VALUE"),
        (
            update_pb2.Change(
                parameter=NAME,
                set=update_pb2.SetChange(value=NUMBER, mode=99),  # type: ignore[arg-type]  # newer
            ),
            "UNKNOWN_OPERATION",
        ),
        (
            update_pb2.Change(
                parameter=NAME, ramp=update_pb2.RampChange(value=parameter_pb2.Value(text="x"))
            ),
            "INVALID_TYPE",
        ),
        (
            update_pb2.Change(parameter=NAME, schedule=update_pb2.ScheduleChange()),
            "UNKNOWN_OPERATION",
        ),
        (
            update_pb2.Change(
                parameter=NAME,
                release=update_pb2.ReleaseChange(),
                coupling=update_pb2.COUPLING_SQRT,
            ),
            "COUPLING_UNSUPPORTED",
        ),
        (
            update_pb2.Change(
                parameter=NAME,
                multiply=update_pb2.MultiplyChange(factor=2.0),
                coupling=99,  # type: ignore[arg-type]  # newer
            ),
            "COUPLING_UNSUPPORTED",
        ),
    ],
)
def test_what_can_not_be_understood_is_refused(message: update_pb2.Change, reason: str) -> None:
    with pytest.raises(Refused) as caught:
        change_from_proto(message)
    assert caught.value.reason == reason
    assert NAME in caught.value.message


def test_a_declaration() -> None:
    spec = ParameterSpec(
        name=NAME,
        kind=Kind.FLOAT,
        description="how far",
        unit="1/step",
        minimum=0.0,
        minimum_exclusive=True,
        boundary=BoundaryKind.GENERATION,
        current=0.5,
        operations=frozenset({Operation.SET, Operation.RELEASE}),
        groups=("0", "1"),
    )
    message = spec_to_proto(spec)
    assert message == parameter_pb2.ParameterSpec(
        name=NAME,
        kind=parameter_pb2.PARAMETER_KIND_NUMBER,
        unit="1/step",
        bounds=parameter_pb2.Bounds(minimum=0.0, minimum_exclusive=True),
        boundary=parameter_pb2.BOUNDARY_GENERATION,
        operations=[parameter_pb2.OPERATION_SET, parameter_pb2.OPERATION_RELEASE],
        groups=["0", "1"],
        current_value=NUMBER,
        description="how far",
    )
    assert not message.bounds.HasField("maximum")
    closed = spec_to_proto(spec, "not here")
    assert closed.unavailable_reason == "not here"
    assert not closed.operations


def test_a_declaration_of_what_is_unknown_or_unavailable() -> None:
    spec = ParameterSpec(
        NAME, Kind.ENUM, "which", choices=("a", "b"), unavailable={Operation.SET: "no reason"}
    )
    message = spec_to_proto(spec)
    assert message.kind == parameter_pb2.PARAMETER_KIND_TEXT
    assert list(message.bounds.allowed_texts) == ["a", "b"]
    assert not message.HasField("current_value")
    assert message.unavailable_reason == "no reason"


@pytest.mark.parametrize(
    ("value", "kind"),
    [(True, "boolean"), (0, "integer"), (0.0, "number"), ("", "text")],
)
def test_values_keep_their_kind(value: Value, kind: str) -> None:
    message = value_to_proto(value)
    assert message is not None
    assert message.WhichOneof("kind") == kind
    assert getattr(message, kind) == value
    assert value_to_proto(None) is None


def test_an_unknown_reading_is_absent_and_not_zero() -> None:
    known, unknown = readings_to_proto(NAME, Reading({"0": 0.0, "1": None}))
    assert known.HasField("value")
    assert not unknown.HasField("value")


def made(old: Reading, new: Reading, group: str | None = None) -> Applied:
    return Applied(Release(NAME, group=group), Boundary(0), old, new, None)


def test_transitions_tell_what_was_meant_or_moved() -> None:
    one = made(
        Reading({"0": 1.0, "1": 1.0, "2": 1.0}), Reading({"0": 1.0, "1": 2.0, "2": 1.0}), "0"
    )
    two = made(
        Reading({"0": 1.0, "1": 2.0, "2": 1.0}), Reading({"0": 3.0, "1": 2.0, "2": 1.0}), "0"
    )
    assert [
        (each.group, each.old_value.number, each.new_value.number)
        for each in transitions_to_proto([one, two])
    ] == [("0", 1.0, 3.0), ("1", 1.0, 2.0)]


def test_transitions_without_groups() -> None:
    (each,) = transitions_to_proto([made(Reading({EVERY_GROUP: None}), Reading({EVERY_GROUP: 1}))])
    assert each.group == ""
    assert not each.HasField("old_value")
    assert each.new_value.integer == 1
