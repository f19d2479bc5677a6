"""What is typed: assignments and durations."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st

from control_plane.cli import requested
from control_plane.cli.assignments import (
    AssignmentError,
    Current,
    Kind,
    Meaning,
    Multiply,
    Release,
    Set,
    interpret,
    split_assignment,
)
from control_plane.cli.durations import parse_duration
from midcourse.control.v1 import parameter_pb2, update_pb2

NAMES = st.from_regex(r"[A-Za-z_][A-Za-z0-9_.]{0,20}", fullmatch=True)


@given(NAMES, st.text(min_size=1))
def test_the_first_equals_sign_splits(name: str, value: str) -> None:
    assert split_assignment(f"{name}={value}") == (name, value)


@pytest.mark.parametrize("text", ["", "=1", "1x=2", "learning rate=1", "-x=1"])
def test_what_has_no_name_is_refused(text: str) -> None:
    with pytest.raises(AssignmentError, match="learning_rate=5e-5"):
        split_assignment(text)


@pytest.mark.parametrize("text", ["learning_rate", "learning_rate="])
def test_what_has_no_value_is_told_what_to_write(text: str) -> None:
    with pytest.raises(AssignmentError, match=r"learning_rate=x0\.5 to multiply"):
        split_assignment(text)


@given(st.floats(allow_nan=False))
def test_numbers_survive(value: float) -> None:
    assert interpret("p", repr(value), "number") == Set(value)


def test_nan_is_passed_on_for_the_control_plane_to_refuse() -> None:
    meaning = interpret("p", "nan", "number")
    assert isinstance(meaning, Set)
    assert isinstance(meaning.value, float)
    assert math.isnan(meaning.value)


@given(st.integers())
def test_integers_survive(value: int) -> None:
    assert interpret("p", str(value), "integer") == Set(value)


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_factors_survive(factor: float) -> None:
    for kind in ("number", "integer", None):
        assert interpret("p", f"x{factor!r}", kind) == Multiply(factor)


@given(st.text())
def test_every_text_can_be_written(text: str) -> None:
    for kind in ("text", None):
        assert interpret("p", json.dumps(text), kind) == Set(text)
    if not text.startswith('"'):
        assert interpret("p", text, "text") == Set(text)


@given(st.text(min_size=1), st.sampled_from(["number", "integer", "boolean", "text", None]))
def test_anything_is_understood_or_refused_in_words(text: str, kind: Kind | None) -> None:
    try:
        meaning: object = interpret("p", text, kind)
    except AssignmentError as error:
        meaning = str(error)
    assert not isinstance(meaning, str) or meaning.startswith("p")


@pytest.mark.parametrize(
    ("text", "kind", "meaning"),
    [
        ("5e-5", "number", Set(5e-5)),
        ("10", "number", Set(10.0)),
        ("1e3", "integer", Set(1000)),
        ("on", "boolean", Set(True)),
        ("FALSE", "boolean", Set(False)),
        ("x0.5", "number", Multiply(0.5)),
        ("x.5", "number", Multiply(0.5)),
        ("x0.5", "text", Set("x0.5")),
        ("release", "number", Release()),
        ("release", "text", Set("release")),
        ("current", "number", Current()),
        ("10", None, Set(10)),
        ("5e-5", None, Set(5e-5)),
        ("true", None, Set(True)),
        ("xformers", None, Set("xformers")),
        ("cosine", None, Set("cosine")),
    ],
)
def test_meanings(text: str, kind: Kind | None, meaning: Meaning) -> None:
    assert interpret("p", text, kind) == meaning


@pytest.mark.parametrize(
    ("text", "kind", "words"),
    [
        ("fast", "number", "takes a number"),
        ("1.5", "integer", "takes a whole number"),
        ("inf", "integer", "takes a whole number"),
        ("maybe", "boolean", "takes true or false"),
        ("x0.5z", "number", "no factor"),
        ('"open', "text", "no complete JSON string"),
    ],
)
def test_refusals_say_what_was_got(text: str, kind: Kind, words: str) -> None:
    with pytest.raises(AssignmentError, match=words) as caught:
        interpret("p", text, kind)
    assert text.lstrip("x") in str(caught.value)


LEARNING_RATE = parameter_pb2.ParameterSpec(
    name="learning_rate", kind=parameter_pb2.PARAMETER_KIND_NUMBER
)


def ask(text: str, **options: Any) -> update_pb2.Change:
    how = requested.How(**options)
    how.check()
    (change,) = requested.changes(requested.split([text]), [LEARNING_RATE], how)
    return change


def test_changes_out_of_assignments_and_options() -> None:
    assert ask("learning_rate=10", group="1").set.value.number == 10.0
    assert ask("learning_rate=x0.5").multiply.factor == 0.5
    assert ask("learning_rate=release", mode="hold").HasField("release")
    assert ask("learning_rate=1e-5", mode="hold", steps=7).set.hold_steps == 7
    assert ask("learning_rate=1e-5", mode="ramp", steps=7).ramp.steps == 7
    schedule = ask("learning_rate=1e-5", mode="schedule", shape="cosine", floor=1e-7).schedule
    assert (schedule.peak, schedule.floor) == (1e-5, 1e-7)
    assert not ask("learning_rate=current", mode="schedule", shape="linear").schedule.HasField(
        "peak"
    )


@pytest.mark.parametrize(
    ("text", "options", "words"),
    [
        ("learning_rate=1", {"mode": "ramp"}, "needs --steps"),
        ("learning_rate=1", {"mode": "schedule"}, "needs --shape"),
        ("learning_rate=1", {"steps": 3}, "--steps goes with"),
        ("learning_rate=1", {"floor": 0.0}, "--floor goes with --mode schedule"),
        ("learning_rate=x2", {"mode": "hold"}, "multiplying does not go with --mode hold"),
        ("learning_rate=current", {}, "goes with --mode schedule"),
        ("other=true", {"mode": "schedule", "shape": "linear"}, "a schedule is for numbers"),
        ("other=99999999999999999999", {}, "64 bits"),
    ],
)
def test_options_that_do_not_go_together(text: str, options: dict[str, Any], words: str) -> None:
    with pytest.raises(typer.BadParameter, match=words):
        ask(text, **options)


UNITS = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400}


@given(
    st.lists(
        st.tuples(st.integers(1, 9999), st.sampled_from(sorted(UNITS))), min_size=1, max_size=4
    )
)
def test_durations_add_up(parts: list[tuple[int, str]]) -> None:
    text = "".join(f"{number}{unit}" for number, unit in parts)
    expected = sum(number * UNITS[unit] for number, unit in parts)
    assert parse_duration(text) == pytest.approx(expected)


@given(st.floats(0.001, 1e8))
def test_plain_numbers_are_seconds(seconds: float) -> None:
    text = f"{seconds:.6f}"
    assert parse_duration(text) == float(text)


@given(st.text(max_size=12))
def test_other_texts_are_refused_in_words(text: str) -> None:
    try:
        seconds, refusal = parse_duration(text), ""
    except ValueError as error:
        seconds, refusal = 1.0, str(error)
    assert 0 < seconds <= 100 * 365 * 86400
    assert not refusal or repr(text) in refusal


@pytest.mark.parametrize(
    "text", ["", "0", "-1", "10x", "m", "1 m", "1e3", "1h-5m", "9999999d", "٣s"]
)
def test_no_durations(text: str) -> None:
    with pytest.raises(ValueError, match="duration"):
        parse_duration(text)
