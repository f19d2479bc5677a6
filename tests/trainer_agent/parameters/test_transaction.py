from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.trainer_agent.parameters.runs import EVERY, NAME, RATE, STEPS, Run, assert_same
from trainer_agent.parameters import (
    Applied,
    Boundary,
    Change,
    ChangeFailed,
    Multiply,
    Reading,
    Refused,
    Schedule,
    Set,
    SetMode,
    Shape,
    UndoError,
    apply_all,
)

HERE = Boundary(4, 10)


class Number:
    """A parameter that can be told to refuse, to break, or to keep a change."""

    def __init__(self, name: str, value: float, *, undoable: bool = True) -> None:
        self.name = name
        self.value = value
        self.undoable = undoable

    def __getattr__(self, name: str) -> Any:
        raise NotImplementedError(name)

    def apply(self, change: Change, boundary: Boundary) -> Applied:
        assert isinstance(change, Set)
        if change.value == "broken":
            raise KeyError("lr")
        if not isinstance(change.value, float):
            raise Refused("INVALID_TYPE", "a number, please", value_in_force=self.value)
        old, self.value = self.value, change.value
        return Applied(change, boundary, Reading({"": old}), Reading({"": self.value}), old)

    def undo(self, applied: Applied) -> None:
        if not self.undoable:
            raise RuntimeError("stuck")
        assert isinstance(applied.before, float)
        assert applied.new.value == self.value, "undone in the wrong order"
        self.value = applied.before


changes_strategy = st.lists(
    st.builds(
        Set,
        st.sampled_from(["a", "b", "c"]),
        st.one_of(st.floats(0, 1), st.sampled_from(["refused", "broken"])),
    )
)


@given(changes_strategy)
def test_all_or_none(changes: list[Set]) -> None:
    parameters: dict[str, Any] = {name: Number(name, 9.0) for name in ("a", "b")}
    bad = [
        index
        for index, change in enumerate(changes)
        if change.parameter == "c" or isinstance(change.value, str)
    ]
    if not bad:
        done = apply_all(parameters, changes, HERE)
        assert [applied.change for applied in done] == changes
        for name, parameter in parameters.items():
            mine = [change.value for change in changes if change.parameter == name]
            assert parameter.value == (mine[-1] if mine else 9.0)
        return
    with pytest.raises(ChangeFailed) as failed:
        apply_all(parameters, changes, HERE)
    assert failed.value.change == changes[bad[0]]
    assert {parameter.value for parameter in parameters.values()} == {9.0}


def test_the_culprit_is_named_with_its_own_reason() -> None:
    parameters: dict[str, Any] = {"a": Number("a", 9.0)}
    with pytest.raises(ChangeFailed, match="a number, please") as refused:
        apply_all(parameters, [Set("a", 1.0), Set("a", "x")], HERE)
    assert (refused.value.reason, refused.value.value_in_force) == ("INVALID_TYPE", 1.0)
    with pytest.raises(ChangeFailed, match="has no live parameter 'b'; it has: a") as unknown:
        apply_all(parameters, [Set("b", 1.0)], HERE)
    assert unknown.value.reason == "UNKNOWN_PARAMETER"
    with pytest.raises(ChangeFailed, match="KeyError") as broken:
        apply_all(parameters, [Set("a", "broken")], HERE)
    assert broken.value.reason == "APPLY_FAILED"
    assert isinstance(broken.value.__cause__, KeyError)


def test_what_cannot_be_taken_back_is_said_and_the_rest_is_taken_back() -> None:
    parameters: dict[str, Any] = {
        "a": Number("a", 9.0),
        "b": Number("b", 9.0, undoable=False),
    }
    changes = [Set("a", 1.0), Set("b", 2.0), Set("a", 3.0), Set("a", "x")]
    with pytest.raises(UndoError, match="still in force") as failed:
        apply_all(parameters, changes, HERE)
    assert failed.value.stuck == (changes[1],)
    assert (parameters["a"].value, parameters["b"].value) == (9.0, 2.0)
    assert isinstance(failed.value.__cause__, Refused)


@pytest.mark.parametrize("name", ["cosine", "CosineAnnealingLR", "none"])
def test_a_failed_transaction_leaves_a_run_as_it_was(name: str) -> None:
    untouched, run = Run(EVERY[name], steered=False), Run(EVERY[name]).until(5)
    changes: list[Change] = [
        Multiply(NAME, 0.5),
        Set(NAME, RATE, mode=SetMode.HOLD),
        Schedule(NAME, Shape.LINEAR),
        Set(NAME, float("nan")),
    ]
    with pytest.raises(ChangeFailed) as failed:
        apply_all({NAME: run.lr}, changes, run.boundary)
    assert (failed.value.change, failed.value.reason) == (changes[3], "INVALID_VALUE")
    assert_same(run.until(STEPS), untouched.until(STEPS))
    assert type(run.torch_scheduler) is type(untouched.torch_scheduler)


def test_two_changes_of_one_transaction_are_verified_together() -> None:
    run = Run(EVERY["cosine"]).until(5)
    old = run.now()[0]
    done = apply_all({NAME: run.lr}, [Multiply(NAME, 0.5), Multiply(NAME, 0.5)], run.boundary)
    run.pending += done
    run.step()
    assert run.used[-1] == [old * 0.25]
