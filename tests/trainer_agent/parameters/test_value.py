"""A live parameter that is a plain value, against a model of what it should be."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.trainer_agent.parameters.steered import refusal
from trainer_agent.parameters import (
    EVERY_GROUP,
    Boundary,
    Change,
    ChangeFailed,
    Coupling,
    Kind,
    Multiply,
    Operation,
    Ramp,
    Refused,
    Release,
    Set,
    SetMode,
    UndoError,
    Value,
    apply_all,
)
from trainer_agent.parameters.value import ValueParameter, Values

HERE = Boundary(global_step=3, max_steps=10)


class Dials(ValueParameter):
    """Several numbers, each a group."""

    name: ClassVar[str] = "dial"
    description: ClassVar[str] = "Numbers between 0 and 100."
    minimum: ClassVar[float | None] = 0.0
    maximum: ClassVar[float | None] = 100.0
    maximum_exclusive: ClassVar[bool] = True

    def __init__(self, **values: float | None) -> None:
        super().__init__()
        self.values: dict[str, Any] = dict(values)
        self.off: str | None = None

    def get(self) -> Values:
        return dict(self.values)

    def put(self, values: Mapping[str, Value]) -> None:
        self.values.update(values)

    def why_unavailable(self) -> str | None:
        return self.off


class Whole(Dials):
    kind: ClassVar[Kind] = Kind.INT


groups = st.sampled_from([None, "a", "b"])
values = st.floats(0, 99, allow_subnormal=False)
changes: st.SearchStrategy[Change] = st.one_of(
    st.builds(Set, st.just("dial"), values, group=groups),
    st.builds(Multiply, st.just("dial"), st.floats(0, 3, allow_subnormal=False), group=groups),
    st.builds(Release, st.just("dial"), group=groups),
)
acts = st.lists(st.one_of(changes, st.sampled_from(["undo", "resume"])), max_size=12)


@given(acts)
def test_random_changes_follow_a_model(acts: list[Change | str]) -> None:
    original = {"a": 1.0, "b": 40.0}
    dials, model = Dials(**original), dict(original)
    for act in acts:
        before = dict(model)
        match act:
            case Set(value=value, group=group):
                model.update(dict.fromkeys([group] if group else model, float(value)))
            case Multiply(factor=factor, group=group):
                model.update({each: model[each] * factor for each in ([group] if group else model)})
            case Release(group=group):
                model.update({each: original[each] for each in ([group] if group else model)})
            case "resume":
                saved = json.loads(json.dumps(dials.state_dict()))
                dials = Dials(**original)
                dials.load_state_dict(saved)
                assert dials.state_dict() == saved
            case "undo":
                saved = dials.state_dict()
                dials.undo(dials.apply(Set("dial", 7.5), HERE))
                assert dials.state_dict() == saved
            case _:
                raise AssertionError(act)
        if not isinstance(act, str):
            if max(model.values()) >= 100.0:
                assert refusal(dials, act, HERE).reason == "OUT_OF_BOUNDS"
                model = before
            else:
                applied = dials.apply(act, HERE)
                assert (applied.old.by_group, applied.new.by_group) == (before, model)
                assert dials.verify(applied, dials.read(), HERE) is None
        assert dials.values == model
        assert dials.read().by_group == model


def test_released_altogether_there_is_nothing_to_save() -> None:
    dials = Dials(a=1.0, b=2.0)
    dials.apply(Set("dial", 5.0), HERE)
    dials.apply(Release("dial", group="a"), HERE)
    assert dials.state_dict()["original"] == {"a": 1.0, "b": 2.0}
    dials.apply(Release("dial"), HERE)
    assert dials.state_dict() == {}


@pytest.mark.parametrize(
    ("asked", "reason", "words"),
    [
        (Set("dial", 100.0), "OUT_OF_BOUNDS", "at least 0 and below 100"),
        (Set("dial", float("nan")), "OUT_OF_BOUNDS", "nan"),
        (Set("dial", 10**400), "INVALID_TYPE", "takes a number"),
        (Set("dial", True), "INVALID_TYPE", "takes a number, got True"),
        (Set("dial", "much"), "INVALID_TYPE", "'much'"),
        (Set("dial", 1.0, group="c"), "UNKNOWN_GROUP", "there are: a, b"),
        (Set("dial", 1.0, hold_steps=4), "INVALID_STEPS", "hold_steps means nothing"),
        (Set("dial", 1.0, mode=SetMode.PEAK), "UNSUPPORTED_OPERATION", "peak means nothing"),
        (Set("dial", 1.0, coupling=Coupling.SQRT), "UNSUPPORTED_COUPLING", "batch size"),
        (Multiply("dial", float("inf")), "OUT_OF_BOUNDS", "inf"),
        (Multiply("dial", True), "INVALID_TYPE", "a factor is a number"),
        (Ramp("dial", 1.0, 4), "UNSUPPORTED_OPERATION", "allowed: set, multiply, release"),
        (Set("other", 1.0), "UNKNOWN_PARAMETER", "this is dial"),
    ],
)
def test_refusals(asked: Change, reason: str, words: str) -> None:
    refused = refusal(Dials(a=1.0, b=2.0), asked, HERE)
    assert refused.reason == reason
    assert words in refused.message


def test_whole_numbers() -> None:
    whole = Whole(**{EVERY_GROUP: 3})
    assert whole.apply(Set("dial", 4.0), HERE).new.by_group == {EVERY_GROUP: 4}
    assert type(whole.values[EVERY_GROUP]) is int
    assert refusal(whole, Set("dial", 4.5), HERE).reason == "INVALID_TYPE"
    assert "4 × 0.3 is 1.2" in refusal(whole, Multiply("dial", 0.3), HERE).message
    assert whole.apply(Multiply("dial", 0.5), HERE).new.value == 2


def test_unavailable() -> None:
    dials = Dials(a=1.0)
    dials.apply(Set("dial", 2.0), HERE)
    saved = dials.state_dict()
    dials.off = "it is glued"
    assert dials.spec().unavailable_reason == "it is glued"
    assert set(dials.spec().unavailable) == {Operation.SET, Operation.MULTIPLY, Operation.RELEASE}
    assert dials.read().by_group == {}
    assert "it is glued" in refusal(dials, Set("dial", 1.0), HERE).message
    with pytest.raises(ValueError, match="glued"):
        dials.load_state_dict(saved)


def test_a_write_that_reaches_another_group_is_taken_back() -> None:
    class Entangled(Dials):
        def put(self, values: Mapping[str, Value]) -> None:
            super().put(values)
            if values == {"a": 5.0}:
                self.values["b"] = 5.0

    dials = Entangled(a=1.0, b=2.0)
    with pytest.raises(Refused, match=r"the value of group b was to be 2\.0 and is 5\.0"):
        dials.apply(Set("dial", 5.0, group="a"), HERE)
    assert dials.values == {"a": 1.0, "b": 2.0}


def test_what_can_not_be_taken_back_is_never_said_to_be() -> None:
    class Stuck(Dials):
        def put(self, values: Mapping[str, Value]) -> None:
            self.values["a"] = 9.0
            raise OSError("the dial is stuck")

    with pytest.raises(UndoError, match="still in force") as stuck:
        apply_all({"dial": Stuck(a=1.0)}, [Set("dial", 2.0)], HERE)
    assert isinstance(stuck.value.__cause__, OSError)

    class Failing(Dials):
        def put(self, values: Mapping[str, Value]) -> None:
            if values["a"] == 2.0:
                raise OSError("not two")
            super().put(values)

    with pytest.raises(ChangeFailed, match="was taken back: OSError: not two"):
        apply_all({"dial": Failing(a=1.0)}, [Set("dial", 2.0)], HERE)


@pytest.mark.parametrize(
    ("state", "words"),
    [
        ({"version": 99}, "version 99"),
        ({"version": 1}, "damaged"),
        ({"version": 1, "values": {"c": 1.0}, "original": {}}, "parameter groups"),
        ({"version": 1, "values": 3, "original": {}}, "damaged"),
    ],
)
def test_a_state_that_does_not_fit_changes_nothing(state: dict[str, Any], words: str) -> None:
    dials = Dials(a=1.0)
    with pytest.raises(ValueError, match=words):
        dials.load_state_dict(state)
    assert (dials.values, dials.state_dict()) == ({"a": 1.0}, {})


def test_only_its_own_changes_can_be_undone() -> None:
    dials, applied = Dials(a=1.0), Dials(a=1.0).apply(Set("dial", 2.0), HERE)
    object.__setattr__(applied, "before", None)
    with pytest.raises(TypeError, match="not made here"):
        dials.undo(applied)
