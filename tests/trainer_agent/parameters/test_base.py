from __future__ import annotations

import subprocess
import sys

import pytest

from trainer_agent.parameters import (
    EVERY_GROUP,
    Boundary,
    Change,
    Kind,
    Multiply,
    Operation,
    ParameterSpec,
    Ramp,
    Reading,
    Release,
    Schedule,
    Set,
    SetMode,
    Shape,
    operation_of,
)


def test_every_operation_is_asked_for_by_one_kind_of_change() -> None:
    changes: list[Change] = [
        Set("p", 1.0),
        Set("p", 1.0, mode=SetMode.PEAK),
        Set("p", 1.0, mode=SetMode.HOLD),
        Multiply("p", 2.0),
        Ramp("p", 1.0, 3),
        Schedule("p", Shape.LINEAR),
        Release("p"),
    ]
    assert [operation_of(change) for change in changes] == list(Operation)


def test_words_of_the_wire_are_taken_and_unknown_ones_are_not() -> None:
    assert Set("p", 1.0, mode="hold").mode is SetMode.HOLD  # type: ignore[arg-type]
    assert Schedule("p", "cosine").shape is Shape.COSINE  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="peek"):
        Set("p", 1.0, mode="peek")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="sine"):
        Schedule("p", "sine")  # type: ignore[arg-type]


def test_the_step_after_a_boundary_is_the_first_to_use_a_change() -> None:
    assert Boundary(global_step=41).next_step == 42


def test_a_reading_shows_its_first_group() -> None:
    assert Reading({"a": 1.0, "b": 2.0}).value == 1.0
    assert Reading({EVERY_GROUP: None}).value is None
    assert Reading({}).value is None


def test_a_parameter_that_offers_nothing_says_why() -> None:
    offered = ParameterSpec("p", Kind.INT, "", operations=frozenset({Operation.SET}))
    assert offered.unavailable_reason is None
    refused = ParameterSpec("p", Kind.INT, "", unavailable={Operation.SET: "no loader"})
    assert refused.unavailable_reason == "no loader"
    assert ParameterSpec("p", Kind.INT, "").unavailable_reason is not None


def test_the_contract_costs_no_torch_and_no_grpc() -> None:
    code = (
        "import sys, trainer_agent.parameters\n"
        "costly = {'torch', 'transformers', 'grpc', 'google'}\n"
        "print(sorted(costly & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.strip() == "[]"
