"""Which changes a job's declared parameters allow; every fault has its own words and field."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from control_plane.domain.change_rules import check_changes
from control_plane.domain.errors import Reason, Refusal
from control_plane.domain.parameter import (
    Bounds,
    Change,
    Coupling,
    GuardRails,
    Kind,
    MultiplyChange,
    Operation,
    ParameterSpec,
    RampChange,
    ReleaseChange,
    ScheduleChange,
    SetChange,
    Shape,
    Value,
)
from tests.support.domain_values import LEARNING_RATE, refused

LR = "learning_rate"
BATCH = "global_batch_size"
ALL = tuple(Operation)
OFFERED = (
    LEARNING_RATE,
    ParameterSpec("steps", Kind.INTEGER, bounds=Bounds(1, 100), operations=ALL),
    ParameterSpec("switch", Kind.BOOLEAN),
    ParameterSpec("method", Kind.TEXT, bounds=Bounds(allowed_texts=("linear", "sqrt"))),
    ParameterSpec(
        "open", bounds=Bounds(0, 1, minimum_exclusive=True, maximum_exclusive=True), operations=ALL
    ),
    ParameterSpec("free", operations=ALL),
    ParameterSpec("frozen", guard_rails=GuardRails(frozen=True), operations=ALL),
    ParameterSpec("ours", guard_rails=GuardRails(allowed_principals=("ann", "bob"))),
    ParameterSpec(
        "narrow", bounds=Bounds(0, 10), guard_rails=GuardRails(Bounds(2, 5)), operations=ALL
    ),
    ParameterSpec(BATCH, Kind.INTEGER, bounds=Bounds(1, 4096)),
    ParameterSpec("away", unavailable_reason="its optimizer has none"),
)
IN_FORCE: dict[tuple[str, str], Value] = {
    (LR, ""): 2e-5,
    ("open", ""): 0.5,
    ("free", ""): 1.0,
    ("narrow", ""): 3.0,
    (BATCH, ""): 64,
}


def check(
    *changes: Change,
    in_force: Mapping[tuple[str, str], Value] = IN_FORCE,
    principal: str = "ops",
    force: bool = False,
    specs: tuple[ParameterSpec, ...] = OFFERED,
) -> None:
    check_changes(changes, specs, in_force=in_force, principal=principal, force=force)


def refusal_of(*changes: Change, **options: Any) -> Refusal:
    with pytest.raises(Refusal) as caught:
        check(*changes, **options)
    return caught.value


NAN, INF = math.nan, math.inf
INVALID = Reason.INVALID_ARGUMENT


@pytest.mark.parametrize(
    ("change", "reason", "path", "said"),
    [
        # What there is to change.
        (SetChange("lr", 1e-5), Reason.PARAMETER_UNKNOWN, ".parameter", "got 'lr', this job"),
        (SetChange("away", 1), Reason.PARAMETER_UNAVAILABLE, ".parameter", "its optimizer has"),
        (SetChange("frozen", 1.0), Reason.PARAMETER_FROZEN, ".parameter", "frozen"),
        (SetChange("ours", 1.0), Reason.NOT_ALLOWED, ".parameter", "ann, bob"),
        (SetChange(LR, 1e-5, "decay"), INVALID, ".group", "got 'decay', groups of"),
        (SetChange("free", 1.0, "0"), INVALID, ".group", "none"),
        # How.
        (
            MultiplyChange("switch", 2.0),
            Reason.OPERATION_UNSUPPORTED,
            "",
            "does not offer multiply; it offers: set",
        ),
        (SetChange("switch", True, mode="hold"), Reason.OPERATION_UNSUPPORTED, "", "hold"),
        (SetChange("switch", True, mode="peak"), Reason.OPERATION_UNSUPPORTED, "", "peak"),
        (ReleaseChange("method"), Reason.OPERATION_UNSUPPORTED, "", "release"),
        # Types.
        (SetChange(LR, "1e-5"), INVALID, ".set.value", "a number"),
        (SetChange(LR, True), INVALID, ".set.value", "got True (bool), allowed: a number"),
        (SetChange("steps", 2.0), INVALID, ".set.value", "a whole number"),
        (SetChange("steps", True), INVALID, ".set.value", "a whole number"),
        (SetChange("steps", NAN), INVALID, ".set.value", "a whole number"),
        (SetChange("switch", 1), INVALID, ".set.value", "true or false"),
        (SetChange("method", 1.0), INVALID, ".set.value", "a text"),
        (RampChange("steps", 2.5, 10), INVALID, ".ramp.value", "a whole number"),
        # Values that are none.
        (SetChange(LR, NAN), INVALID, ".set.value", "got nan, allowed: a finite number"),
        (SetChange(LR, INF), INVALID, ".set.value", "got inf"),
        (SetChange(LR, -INF), INVALID, ".set.value", "got -inf"),
        (RampChange(LR, NAN, 5), INVALID, ".ramp.value", "got nan"),
        (MultiplyChange(LR, NAN), INVALID, ".multiply.factor", "got nan, allowed: finite"),
        (MultiplyChange(LR, INF), INVALID, ".multiply.factor", "got inf"),
        (MultiplyChange(LR, 0.0), INVALID, ".multiply.factor", "got 0, allowed"),
        (MultiplyChange(LR, -1.0), INVALID, ".multiply.factor", "above 0"),
        (ScheduleChange(LR, Shape.LINEAR, NAN), INVALID, ".schedule.peak", "got nan"),
        (ScheduleChange(LR, Shape.LINEAR, 1e-5, floor=INF), INVALID, ".schedule.floor", "got inf"),
        (ScheduleChange(LR, Shape.LINEAR, floor=-1e-9), INVALID, ".schedule.floor", "at least 0"),
        # Hard limits.
        (SetChange(LR, -1e-9), INVALID, ".set.value", "got -1e-09, allowed: at least 0, at most 1"),
        (SetChange(LR, 1.5), INVALID, ".set.value", "got 1.5, allowed: at least 0, at most 1"),
        (RampChange(LR, 1.5, 5), INVALID, ".ramp.value", "got 1.5, allowed"),
        (ScheduleChange(LR, Shape.COSINE, 1.5), INVALID, ".schedule.peak", "got 1.5, allowed"),
        (SetChange("steps", 0), INVALID, ".set.value", "got 0, allowed: at least 1, at most 100"),
        (SetChange("steps", 101), INVALID, ".set.value", "got 101"),
        (SetChange("open", 0.0), INVALID, ".set.value", "got 0, allowed: above 0, below 1"),
        (SetChange("open", 1.0), INVALID, ".set.value", "got 1, allowed: above 0, below 1"),
        (SetChange("method", "cubic"), INVALID, ".set.value", "got 'cubic', allowed: linear, sqrt"),
        # Form.
        (SetChange(LR, 1e-5, hold_steps=5), INVALID, ".set.hold_steps", "only for mode hold"),
        (SetChange(LR, 1e-5, mode="hold", hold_steps=0), INVALID, ".set.hold_steps", "at least 1"),
        (RampChange(LR, 1e-5, 0), INVALID, ".ramp.steps", "got 0, at least 1"),
        (ScheduleChange(LR, Shape.LINEAR, steps=0), INVALID, ".schedule.steps", "at least 1"),
        (
            ScheduleChange(LR, Shape.LINEAR, warmup_steps=11, steps=10),
            INVALID,
            ".schedule.steps",
            "at least warmup_steps (11)",
        ),
        (
            ScheduleChange(LR, Shape.LINEAR, 1e-5, floor=2e-5),
            INVALID,
            ".schedule.floor",
            "got 2e-05, at most the peak 1e-05",
        ),
        # Limits set by the owner.
        (SetChange("narrow", 1.0), Reason.GUARD_RAIL, ".set.value", "set by the job's owner"),
        (SetChange("narrow", 5.5), Reason.GUARD_RAIL, ".set.value", "at least 2, at most 5"),
        (SetChange("narrow", 11.0), INVALID, ".set.value", "(hard limit)"),
        (MultiplyChange("narrow", 2.0), Reason.GUARD_RAIL, ".multiply.factor", "got 6, allowed"),
        (MultiplyChange("narrow", 4.0), INVALID, ".multiply.factor", "got 12, allowed"),
        (MultiplyChange("open", 2.0), INVALID, ".multiply.factor", "above 0, below 1 (hard"),
        (RampChange("narrow", 1.0, 9), Reason.GUARD_RAIL, ".ramp.value", "set by the job's owner"),
        (
            ScheduleChange("narrow", Shape.LINEAR, 4.0, floor=1.0),
            Reason.GUARD_RAIL,
            ".schedule.floor",
            "got 1, allowed: at least 2",
        ),
        (ReleaseChange("frozen"), Reason.PARAMETER_FROZEN, ".parameter", "frozen"),
        # What the learning rate does with a batch size.
        (
            SetChange(LR, 1e-5, coupling=Coupling.LINEAR),
            INVALID,
            ".coupling",
            "got linear, which goes with a batch size: gradient_accumulation_steps",
        ),
        (
            SetChange(BATCH, 64 * 11, coupling=Coupling.LINEAR),
            Reason.GUARD_RAIL,
            ".coupling",
            "learning_rate would follow: this is 11 times the value in force",
        ),
        (SetChange(BATCH, 64 // 11, coupling=Coupling.LINEAR), Reason.GUARD_RAIL, ".coupling", ""),
        (SetChange(BATCH, 0, coupling=Coupling.LINEAR), INVALID, ".set.value", "at least 1"),
        # More than ten times, up and down.
        (SetChange(LR, 2.1e-4), Reason.GUARD_RAIL, ".set.value", "use force to override"),
        (SetChange(LR, 1.9e-6), Reason.GUARD_RAIL, ".set.value", "0.095 times the value in force"),
        (SetChange(LR, 0.0), Reason.GUARD_RAIL, ".set.value", "0 times the value in force"),
        (SetChange(LR, 2.1e-4, mode="hold"), Reason.GUARD_RAIL, ".set.value", "10.5 times"),
        (RampChange(LR, 2.1e-4, 9), Reason.GUARD_RAIL, ".ramp.value", "10.5 times"),
        (ScheduleChange(LR, Shape.LINEAR, 2.1e-4), Reason.GUARD_RAIL, ".schedule.peak", "(2e-05)"),
        (MultiplyChange(LR, 10.5), Reason.GUARD_RAIL, ".multiply.factor", "0.1 to 10 times"),
        (MultiplyChange(LR, 0.09), Reason.GUARD_RAIL, ".multiply.factor", "0.09 times"),
    ],
)
def test_a_fault_is_named(change: Change, reason: Reason, path: str, said: str) -> None:
    refusal = refusal_of(change)
    assert refusal.reason is reason
    assert [v.field for v in refusal.violations] == [f"spec.changes[0]{path}"]
    assert said in refusal.violations[0].description
    assert said in refusal.message


@pytest.mark.parametrize(
    "change",
    [
        SetChange(LR, 2e-4),
        SetChange(LR, 2e-6),
        SetChange(LR, 0.1, mode="peak"),  # a base value, of which no factor follows
        SetChange(LR, 1e-5, mode="hold"),
        SetChange(LR, 1e-5, "1", mode="hold", hold_steps=1),
        MultiplyChange(LR, 10.0),
        MultiplyChange(LR, 0.1),
        RampChange(LR, 1e-5, 1),
        ScheduleChange(LR, Shape.CONSTANT),
        ScheduleChange(LR, Shape.LINEAR, 1e-5, warmup_steps=10, floor=1e-5, steps=10),
        ReleaseChange(LR),
        SetChange("steps", 1),
        SetChange("steps", 100),
        SetChange("switch", False),
        SetChange("method", "sqrt"),
        SetChange("free", -1e300, mode="peak"),
        SetChange("free", 3),  # a whole number is a number
        SetChange("open", 0.5),
        SetChange("narrow", 2.0),
        MultiplyChange("free", 1e6),  # no limit declared
    ],
)
def test_what_is_just_allowed_is_allowed(change: Change) -> None:
    check(change)


def test_a_coupling_is_as_much_as_it_makes_of_the_learning_rate() -> None:
    check(SetChange(BATCH, 640, coupling=Coupling.LINEAR))
    check(SetChange(BATCH, 4096, coupling=Coupling.SQRT))  # the root of 64 times
    check(SetChange(BATCH, 704))  # by itself a batch size has no such limit
    check(SetChange(BATCH, 704, coupling=Coupling.LINEAR), force=True)
    # Where the batch size in force is not known, nothing follows from the new one.
    check(SetChange(BATCH, 704, coupling=Coupling.LINEAR), in_force={(LR, ""): 2e-5})


@pytest.mark.parametrize(
    ("rate", "reason", "said"),
    [
        (None, Reason.PARAMETER_UNKNOWN, "offers no learning_rate that could follow"),
        ({"unavailable_reason": "DeepSpeed"}, Reason.PARAMETER_UNAVAILABLE, "DeepSpeed"),
        ({"guard_rails": GuardRails(frozen=True)}, Reason.PARAMETER_FROZEN, "frozen"),
        ({"guard_rails": GuardRails(allowed_principals=("ann",))}, Reason.NOT_ALLOWED, "ann"),
        ({"guard_rails": GuardRails(Bounds(0, 3e-5))}, Reason.GUARD_RAIL, "got 4e-05"),
        ({"operations": (Operation.SET,)}, Reason.OPERATION_UNSUPPORTED, "multiply"),
    ],
)
def test_a_coupling_is_no_way_round_the_rails_of_the_learning_rate(
    rate: dict[str, Any] | None, reason: Reason, said: str
) -> None:
    specs = tuple(spec for spec in OFFERED if spec.name != LR)
    if rate is not None:
        specs = (replace(LEARNING_RATE, **rate), *specs)
    change = SetChange(BATCH, 128, coupling=Coupling.LINEAR)
    refusal = refusal_of(change, specs=specs)
    assert refusal.reason is reason
    assert [v.field for v in refusal.violations] == ["spec.changes[0].coupling"]
    assert said in refusal.violations[0].description
    check(replace(change, coupling=Coupling.NONE), specs=specs)


def test_force_overrides_the_relative_limit_alone() -> None:
    check(SetChange(LR, 0.9), MultiplyChange("free", 1e9), force=True)
    for change, reason in [
        (SetChange(LR, 1.5), INVALID),
        (SetChange(LR, NAN), INVALID),
        (SetChange("narrow", 5.5), Reason.GUARD_RAIL),
        (SetChange("frozen", 1.0), Reason.PARAMETER_FROZEN),
        (SetChange("ours", 1.0), Reason.NOT_ALLOWED),
        (SetChange("away", 1.0), Reason.PARAMETER_UNAVAILABLE),
    ]:
        assert refusal_of(change, force=True).reason is reason


def test_those_whom_the_owner_names_may() -> None:
    check(SetChange("ours", 1.0), principal="bob")


def test_the_owners_rails_take_the_place_of_the_defaults() -> None:
    loose = replace(LEARNING_RATE, guard_rails=GuardRails())
    check(SetChange(LR, 0.5), specs=(loose,))
    tight = replace(LEARNING_RATE, guard_rails=GuardRails(max_relative_change=1.5))
    assert refusal_of(SetChange(LR, 3.1e-5), specs=(tight,)).reason is Reason.GUARD_RAIL


@pytest.mark.parametrize("current", [None, 0.0, -1.0])
def test_no_factor_is_claimed_where_none_is_known(current: float | None) -> None:
    known = {} if current is None else {(LR, ""): current}
    check(SetChange(LR, 0.9), in_force=known)
    assert refusal_of(MultiplyChange(LR, 11.0), in_force=known).reason is Reason.GUARD_RAIL


def test_a_groups_own_value_counts_for_the_group() -> None:
    known = {(LR, ""): 2e-5, (LR, "1"): 2e-3}
    check(SetChange(LR, 1e-2, "1"), in_force=known)
    assert refusal_of(SetChange(LR, 1e-2), in_force=known).reason is Reason.GUARD_RAIL
    check(SetChange(LR, 1e-2, "1"), in_force={(LR, ""): 2e-5})  # unknown is no ground to refuse


def test_a_parameter_is_changed_once_but_each_group_of_it_may_be() -> None:
    check(SetChange(LR, 1e-5, "0"), SetChange(LR, 1e-5, "1"))
    refusal = refusal_of(SetChange(LR, 1e-5), SetChange(LR, 1e-5))
    assert refusal.reason is INVALID
    assert [v.field for v in refusal.violations] == ["spec.changes[1].parameter"]
    assert "twice" in refusal.message


ACCUMULATION, DEVICE_BATCH = "gradient_accumulation_steps", "per_device_train_batch_size"
BATCHES = (
    *OFFERED,
    ParameterSpec(ACCUMULATION, Kind.INTEGER, bounds=Bounds(1)),
    ParameterSpec(DEVICE_BATCH, Kind.INTEGER, bounds=Bounds(1)),
)
SIZES: dict[tuple[str, str], Value] = {**IN_FORCE, (ACCUMULATION, ""): 2, (DEVICE_BATCH, ""): 4}


def coupled(parameter: str, value: int, how: Coupling = Coupling.LINEAR) -> SetChange:
    return SetChange(parameter, value, coupling=how)


@pytest.mark.parametrize(
    ("changes", "path"),
    [
        ((coupled(BATCH, 576), MultiplyChange(LR, 9.0)), "[1].multiply"),
        ((MultiplyChange(LR, 9.0), coupled(BATCH, 576)), "[1].coupling"),
        ((SetChange(LR, 1.8e-4), coupled(BATCH, 256, Coupling.SQRT)), "[1].coupling"),
        ((RampChange(LR, 1.8e-4, 5), coupled(BATCH, 576)), "[1].coupling"),
        ((MultiplyChange(LR, 0.2), coupled(BATCH, 16)), "[1].coupling"),
        ((MultiplyChange(LR, 9.0), MultiplyChange(LR, 9.0, "1")), "[1].multiply"),
        ((SetChange(LR, 1.8e-4), MultiplyChange(LR, 9.0, "1")), "[1].multiply"),
        ((coupled(ACCUMULATION, 8), coupled(DEVICE_BATCH, 16)), "[1].coupling"),
    ],
)
def test_what_an_update_comes_to_is_what_counts(changes: tuple[Change, ...], path: str) -> None:
    refusal = refusal_of(*changes, specs=BATCHES, in_force=SIZES)
    assert refusal.reason is Reason.GUARD_RAIL
    assert [v.field for v in refusal.violations] == [f"spec.changes{path}"]
    assert "together" in refusal.message
    for each in changes:
        check(each, specs=BATCHES, in_force=SIZES)
    check(*changes, specs=BATCHES, in_force=SIZES, force=True)


@pytest.mark.parametrize(
    "changes",
    [
        (coupled(BATCH, 576), MultiplyChange(LR, 1 / 9)),
        (coupled(BATCH, 576), SetChange(LR, 1.8e-4)),  # what is set last stands
        (MultiplyChange(LR, 9.0, "0"), MultiplyChange(LR, 9.0, "1")),
        # What the value was when it was multiplied is not known.
        (SetChange(LR, 1.0, mode="peak"), MultiplyChange(LR, 9.0, "1")),
        (ReleaseChange(LR), coupled(BATCH, 576)),
        (SetChange(LR, 1e-3, "1"), coupled(BATCH, 576)),  # that of a group
        # The first of them moves the other, so that by how much it moves is not known.
        (SetChange(DEVICE_BATCH, 64), coupled(BATCH, 1024)),
        (coupled(ACCUMULATION, 8), coupled(BATCH, 576)),
    ],
)
def test_what_an_update_comes_to_is_within_the_limit_or_unknown(
    changes: tuple[Change, ...],
) -> None:
    check(*changes, specs=BATCHES, in_force=SIZES)


def test_what_an_update_comes_to_is_held_against_the_bounds_as_well() -> None:
    changes = (coupled(BATCH, 640), MultiplyChange(LR, 9.0))
    in_force = {**IN_FORCE, (LR, ""): 0.05}
    refusal = refusal_of(*changes, in_force=in_force, force=True)
    assert refusal.reason is INVALID
    assert "got 4.5, allowed: at least 0, at most 1 (hard limit)" in refusal.message


def test_every_fault_is_told_and_the_first_gives_the_reason() -> None:
    refusal = refusal_of(
        SetChange("nope", 1.0),
        SetChange(LR, 1e-5),
        SetChange("steps", 0),
        ScheduleChange("open", Shape.LINEAR, NAN, floor=-1.0, steps=0),
    )
    assert refusal.reason is Reason.PARAMETER_UNKNOWN
    assert [v.field for v in refusal.violations] == [
        "spec.changes[0].parameter",
        "spec.changes[2].set.value",
        "spec.changes[3].schedule.peak",
        "spec.changes[3].schedule.floor",
        "spec.changes[3].schedule.steps",
    ]


def test_names_on_offer_leave_out_what_can_not_be_changed() -> None:
    said = refusal_of(SetChange("lr", 1.0)).message
    assert LR in said
    assert "away" not in said
    assert "nothing" in refusal_of(SetChange("lr", 1.0), specs=()).message


values = st.one_of(
    st.floats(), st.integers(-(2**63), 2**63 - 1), st.booleans(), st.text(max_size=5)
)
bounds = st.builds(
    Bounds,
    st.none() | st.floats(-10, 10),
    st.none() | st.floats(-10, 10),
    st.booleans(),
    st.booleans(),
)


@given(bounds, st.floats(-20, 20) | st.sampled_from([-10.0, 0.0, 10.0]))
@settings(max_examples=300)
def test_limits_mean_what_they_say(limits: Bounds, value: float) -> None:
    within = True
    if limits.minimum is not None:
        low = limits.minimum
        within &= value > low if limits.minimum_exclusive else value >= low
    if limits.maximum is not None:
        high = limits.maximum
        within &= value < high if limits.maximum_exclusive else value <= high
    objection = limits.objection(value)
    assert (objection is None) == within
    if objection is not None:
        assert f"allowed: {limits}" in objection


any_change = st.one_of(
    st.builds(
        SetChange,
        st.sampled_from([spec.name for spec in OFFERED]),
        values,
        st.sampled_from(["", "0"]),
        st.sampled_from(["set", "peak", "hold"]),
        st.none() | st.integers(0, 2),
        st.sampled_from(Coupling),
    ),
    st.builds(MultiplyChange, st.sampled_from([LR, "switch", "free", "method"]), st.floats()),
    st.builds(
        RampChange, st.sampled_from([LR, "steps", "free", "method"]), values, st.integers(0, 2)
    ),
    st.builds(
        ScheduleChange,
        st.sampled_from([LR, "free", "switch"]),
        st.sampled_from(Shape),
        st.none() | st.floats(),
        st.integers(0, 3),
        st.floats(),
        st.none() | st.integers(0, 3),
    ),
    st.builds(ReleaseChange, st.sampled_from([LR, "away"])),
)


@given(st.lists(any_change, max_size=4), st.booleans())
@settings(max_examples=300)
def test_anything_at_all_is_accepted_or_refused_with_reasons(
    changes: list[Change], force: bool
) -> None:
    refusal = refused(lambda: check(*changes, force=force))
    if refusal is not None:
        assert refusal.violations
        assert all(v.field.startswith("spec.changes[") for v in refusal.violations)
        return
    for change in changes:  # nothing that is no number gets through
        for number in (
            getattr(change, "value", 0.0),
            getattr(change, "factor", 0.0),
            getattr(change, "peak", None) or 0.0,
            getattr(change, "floor", 0.0),
        ):
            assert isinstance(number, str) or math.isfinite(number)


@given(st.floats(1e-8, 1e-1), st.floats(1e-8, 1e-1), st.floats(1.0, 100.0))
@settings(max_examples=300)
def test_set_and_multiply_have_the_same_guard_rail(
    current: float, target: float, limit: float
) -> None:
    factor = target / current
    assume(not any(math.isclose(factor, edge, rel_tol=1e-6) for edge in (limit, 1 / limit)))
    spec = replace(LEARNING_RATE, guard_rails=GuardRails(max_relative_change=limit))
    allowed = 1 / limit <= factor <= limit
    for change in (SetChange(LR, target), MultiplyChange(LR, factor)):
        in_force = {(LR, ""): current}
        refusal = refused(partial(check, change, in_force=in_force, specs=(spec,)))
        assert (refusal is None) == allowed
        assert refusal is None or refusal.reason is Reason.GUARD_RAIL
