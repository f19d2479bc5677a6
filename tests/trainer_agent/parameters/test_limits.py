"""Types and bounds of parameters, as rules."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer_agent.parameters.base import Kind, Refused
from trainer_agent.parameters.changes import Value
from trainer_agent.parameters.limits import Limits

numbers = st.floats() | st.integers()
values = numbers | st.booleans() | st.text(max_size=3)


def suits(kind: Kind, value: Value) -> bool:
    match kind:
        case Kind.FLOAT:
            return not isinstance(value, bool | str) and _as_float(value) is not None
        case Kind.INT:
            return not isinstance(value, bool | str) and value % 1 == 0
        case Kind.BOOL:
            return isinstance(value, bool)
        case Kind.STRING | Kind.ENUM:
            return isinstance(value, str)


def _as_float(value: float) -> float | None:
    try:
        return float(value)
    except OverflowError:
        return None


@given(st.sampled_from(list(Kind)), values)
def test_a_value_is_made_one_of_the_type_or_refused(kind: Kind, value: Value) -> None:
    limits = Limits("x", kind)
    if not suits(kind, value):
        with pytest.raises(Refused, match="x takes") as caught:
            limits.typed(value)
        assert caught.value.reason == "INVALID_TYPE"
        return
    typed = limits.typed(value)
    assert typed == value or (typed != typed and value != value)
    expected = {Kind.FLOAT: float, Kind.INT: int, Kind.BOOL: bool}.get(kind, str)
    assert type(typed) is expected


@given(st.integers(-1000, 1000), st.sampled_from([0.5, 1 / 3, 2, 2.5, -1, math.inf]))
def test_a_whole_number_stays_one(value: int, factor: float) -> None:
    limits = Limits("x", Kind.INT)
    product = value * factor
    if math.isfinite(product) and product != int(product):
        with pytest.raises(Refused, match="whole number") as caught:
            limits.scaled(value, factor)
        assert caught.value.reason == "INVALID_VALUE"
    else:
        scaled = limits.scaled(value, factor)
        assert scaled == product or math.isnan(product)
        assert isinstance(scaled, int) == math.isfinite(product)


@pytest.mark.parametrize(
    ("kind", "value", "factor", "reason"),
    [
        (Kind.FLOAT, 1.0, True, "INVALID_TYPE"),
        (Kind.FLOAT, 1.0, "2", "INVALID_TYPE"),
        (Kind.FLOAT, None, 2.0, "UNSUPPORTED_OPERATION"),
        (Kind.STRING, "a", 2.0, "UNSUPPORTED_OPERATION"),
        (Kind.BOOL, True, 2.0, "UNSUPPORTED_OPERATION"),
    ],
)
def test_what_can_not_be_multiplied(
    kind: Kind, value: Value | None, factor: float, reason: str
) -> None:
    with pytest.raises(Refused) as caught:
        Limits("x", kind).scaled(value, factor)
    assert caught.value.reason == reason


bounds = st.none() | st.floats(-2, 2)


@given(bounds, st.booleans(), bounds, st.booleans(), st.lists(st.floats(), max_size=3))
def test_bounds_hold_to_the_bit(
    least: float | None, above: bool, most: float | None, below: bool, asked: list[float]
) -> None:
    limits = Limits("x", Kind.FLOAT, least, above, most, below)

    def within(value: float) -> bool:
        return (
            math.isfinite(value)
            and (least is None or (value > least if above else value >= least))
            and (most is None or (value < most if below else value <= most))
        )

    outside = [value for value in asked if not within(value)]
    if not outside:
        limits.check(asked)
        return
    with pytest.raises(Refused) as caught:
        limits.check(asked)
    assert caught.value.reason == "OUT_OF_BOUNDS"
    assert f"would become {outside[0]!r}" in caught.value.message
    if least is None and most is None:
        assert "a finite number" in caught.value.message


@pytest.mark.parametrize(
    ("limits", "allowed"),
    [
        (Limits("x", Kind.FLOAT, minimum=0.1), "at least 0.1"),
        (Limits("x", Kind.FLOAT, minimum=0, minimum_exclusive=True), "above 0"),
        (
            Limits("x", Kind.INT, minimum=1, maximum=2**60 + 1),
            f"at least 1 and at most {2**60 + 1}",
        ),
        (Limits("x", Kind.FLOAT, maximum=1, maximum_exclusive=True), "below 1"),
        (Limits("x", Kind.FLOAT), "a finite number"),
    ],
)
def test_what_is_allowed_is_told_without_losing_a_digit(limits: Limits, allowed: str) -> None:
    with pytest.raises(Refused, match=f"allowed: {allowed}$"):
        limits.check([math.nan])


def test_only_the_choices_there_are() -> None:
    limits = Limits("x", Kind.ENUM, choices=("a", "b"))
    limits.check(["a", "b"])
    with pytest.raises(Refused, match=r"'c'; allowed: a, b$"):
        limits.check(["a", "c"])
