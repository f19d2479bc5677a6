"""The learning rate follows the batch size, in the same transaction."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from tests.trainer_agent.parameters.data_runs import (
    ACCUMULATION,
    BATCH,
    GLOBAL,
    set_to,
    train,
)
from trainer_agent.parameters import (
    Applied,
    Boundary,
    Change,
    ChangeFailed,
    Coupling,
    Multiply,
    Reading,
    Refused,
    Set,
    apply_all,
)

ARGS: dict[str, Any] = {
    "gradient_accumulation_steps": 4,
    "num_train_epochs": 2,
    "lr_scheduler_type": "constant",
}


@pytest.mark.parametrize(
    ("change", "factor"),
    [
        (set_to(ACCUMULATION, 2, coupling=Coupling.LINEAR), 0.5),
        (set_to(ACCUMULATION, 8, coupling=Coupling.LINEAR), 2.0),
        (set_to(GLOBAL, 2, coupling=Coupling.SQRT), math.sqrt(0.5)),
        (Multiply(GLOBAL, 2, coupling=Coupling.SQRT), math.sqrt(2)),
        (set_to(BATCH, 3, coupling=Coupling.LINEAR), 3.0),
        (set_to(ACCUMULATION, 2), 1.0),
    ],
)
def test_the_rate_follows(change: Change, factor: float, tmp_path: Path) -> None:
    run = train(tmp_path, {2: [change]}, **ARGS)
    (made,) = run.steer.made
    names = [each.change.parameter for each in made.applied]
    assert names == [change.parameter, *(["learning_rate"] if factor != 1.0 else [])]
    assert run.steer.rates[: made.step] == [0.1] * made.step
    after = run.steer.rates[made.step :]
    assert after == pytest.approx([0.1 * factor] * len(after))
    if factor != 1.0:
        assert made.applied[1].new.value == run.steer.rates[made.step]
        assert made.applied[1].change == Multiply("learning_rate", factor)


def test_below_a_schedule(tmp_path: Path) -> None:
    args = {**ARGS, "lr_scheduler_type": "linear"}
    free = train(tmp_path, {2: [set_to(ACCUMULATION, 2)]}, **args)
    run = train(tmp_path, {2: [set_to(ACCUMULATION, 2, coupling=Coupling.LINEAR)]}, **args)
    assert run.steer.rates[:2] == free.steer.rates[:2]
    assert run.steer.rates[2:] == pytest.approx([rate / 2 for rate in free.steer.rates[2:]])


def test_the_same_batch_size_leaves_the_rate_alone(tmp_path: Path) -> None:
    plain = train(tmp_path, **ARGS)
    run = train(tmp_path, {2: [set_to(ACCUMULATION, 4, coupling=Coupling.LINEAR)]}, **ARGS)
    (made,) = run.steer.made
    assert len(made.applied) == 1
    run.assert_same(plain)


def test_taken_back_with_all_the_rest(tmp_path: Path) -> None:
    plain = train(tmp_path, **ARGS)
    run = train(
        tmp_path,
        {
            2: [
                set_to(ACCUMULATION, 2, coupling=Coupling.LINEAR),
                set_to(BATCH, 4),  # not here: the epoch runs still
            ]
        },
        **ARGS,
    )
    # Both wait for the end of the epoch, where both are possible.
    assert [made.epoch for made in run.steer.made] == [1.0]

    run = train(
        tmp_path,
        {2: [set_to(ACCUMULATION, 2, coupling=Coupling.LINEAR), Set(GLOBAL, "many")]},
        **ARGS,
    )
    assert [each.reason for each in run.steer.refused] == ["INVALID_TYPE"]
    run.assert_same(plain)


def test_nothing_else_can_be_coupled(tmp_path: Path) -> None:
    run = train(tmp_path, {2: [Set("learning_rate", 0.5, coupling=Coupling.LINEAR)]}, **ARGS)
    (refused,) = run.steer.refused
    assert refused.reason == "UNSUPPORTED_COUPLING"
    assert ACCUMULATION in refused.message
    assert set(run.steer.rates) == {0.1}


def test_a_rate_that_must_not_follow_takes_the_batch_size_back() -> None:
    class Size:
        couples = True
        value = 4.0

        def __getattr__(self, name: str) -> Any:
            raise NotImplementedError(name)

        def apply(self, change: Change, boundary: Boundary) -> Applied:
            assert isinstance(change, Set)
            old, self.value = self.value, float(change.value)
            return Applied(change, boundary, Reading({"": old}), Reading({"": self.value}), old)

        def undo(self, applied: Applied) -> None:
            assert isinstance(applied.before, float)
            self.value = applied.before

    def refuse(change: Change) -> None:
        raise Refused("PARAMETER_FROZEN", f"{change.parameter} is frozen", value_in_force=0.1)

    size: Any = Size()
    rate: Any = object()  # which nothing is asked of
    changes = [Set("size", 4.0), Set("size", 8.0, coupling=Coupling.LINEAR)]
    with pytest.raises(ChangeFailed, match="learning_rate is frozen") as failed:
        apply_all({"size": size, "learning_rate": rate}, changes, Boundary(4, 10), refuse)
    assert failed.value.change == Multiply("learning_rate", 2.0)
    assert (failed.value.reason, failed.value.value_in_force) == ("PARAMETER_FROZEN", 0.1)
    assert size.value == 4.0
