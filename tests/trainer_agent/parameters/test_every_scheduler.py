"""Every scheduler takes every operation, or refuses it with the reason."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from torch.optim import lr_scheduler as torch_schedulers
from transformers.optimization import TYPE_TO_SCHEDULER_FUNCTION

from tests.trainer_agent.parameters.runs import (
    EVERY,
    HUGGING_FACE,
    NAME,
    STEPS,
    TORCH,
    Run,
    assert_same,
    own_rates,
)
from tests.trainer_agent.parameters.scheduler_cases import (
    AT,
    OPERATIONS,
    RATES,
    assert_as_expected,
    assert_peak_as_expected,
)
from trainer_agent.parameters import (
    Multiply,
    Operation,
    Refused,
    Release,
    Set,
    SetMode,
)


def test_every_class_of_torch_and_every_type_of_hugging_face_is_here() -> None:
    assert set(TORCH) == {*torch_schedulers.__all__, "SWALR"} - {"LRScheduler"}
    assert set(HUGGING_FACE) == {kind.value for kind in TYPE_TO_SCHEDULER_FUNCTION}


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("name", EVERY)
def test_the_rates_are_those_expected(name: str, operation: str) -> None:
    assert Run(EVERY[name], RATES, learns=False).lr.spec().operations == frozenset(Operation)
    assert_as_expected(name, operation)


@pytest.mark.parametrize("name", EVERY)
def test_peak(name: str) -> None:
    assert_peak_as_expected(name)


@pytest.mark.parametrize("name", ["ReduceLROnPlateau", "home-made"])
def test_peak_is_refused_where_nothing_says_what_the_schedule_was_built_around(name: str) -> None:
    run = Run(EVERY[name], steered=False).until(AT)
    from trainer_agent.parameters.learning_rate import LearningRate

    rate = LearningRate(run.optimizer, run.scheduler)
    assert Operation.PEAK in rate.spec().unavailable
    with pytest.raises(Refused, match="built around") as refused:
        rate.check(Set(NAME, 0.5, mode=SetMode.PEAK), run.boundary)
    assert (refused.value.reason, refused.value.value_in_force) == ("UNAVAILABLE", run.now()[0])


@pytest.mark.parametrize("name", EVERY)
def test_release_is_exact(name: str) -> None:
    own = own_rates(EVERY[name], rates=RATES)
    for change, _ in OPERATIONS.values():
        run = Run(EVERY[name], RATES, learns=False)
        plain_type = type(run.torch_scheduler)
        run.until(AT).apply(change)
        run.until(AT + 5).apply(Release(NAME))
        run.until(STEPS)
        assert run.used[AT + 5 :] == own[AT + 5 : STEPS], change
        assert run.now() == own[STEPS]
        assert type(run.torch_scheduler) is plain_type


@pytest.mark.parametrize("name", EVERY)
def test_undo_is_exact(name: str) -> None:
    untouched = Run(EVERY[name], RATES, steered=False, learns=False).until(STEPS)
    for change, _ in OPERATIONS.values():
        run = Run(EVERY[name], RATES, learns=False).until(AT)
        first = run.lr.apply(change, run.boundary)
        second = run.lr.apply(Set(NAME, 0.07, mode=SetMode.HOLD), run.boundary)
        run.lr.undo(second)
        run.lr.undo(first)
        assert run.lr.read() == first.old
        assert_same(run.until(STEPS), untouched)
        assert type(run.torch_scheduler) is type(untouched.torch_scheduler)
        if untouched.torch_scheduler is not None:
            mine, theirs = (each.torch_scheduler.state_dict() for each in (run, untouched))
            assert str(mine) == str(theirs), change


@pytest.mark.parametrize("name", EVERY)
def test_undo_of_the_second_leaves_the_first(name: str) -> None:
    def scaled() -> Run:
        run = Run(EVERY[name], RATES, learns=False).until(AT)
        run.apply(Set(NAME, 0.02))
        return run.until(AT + 3)

    once = scaled().until(STEPS)
    for change, _ in OPERATIONS.values():
        twice = scaled()
        twice.lr.undo(twice.lr.apply(change, twice.boundary))
        assert_same(once, twice.until(STEPS))


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("name", EVERY)
def test_resumed_runs_are_the_uninterrupted_ones(name: str, operation: str) -> None:
    def new_run() -> Run:
        return Run(EVERY[name], RATES, optimizer_class=torch.optim.SGD, options={"momentum": 0.9})

    whole = new_run().until(4)
    whole.apply(Set(NAME, 0.02))
    whole.until(AT).apply(OPERATIONS[operation][0])
    held = [whole.until(at).checkpoint() for at in (AT, AT + 3)]
    whole.until(AT + 5).apply(Multiply(NAME, 1.5))
    whole.until(AT + 7).apply(Release(NAME))
    whole.until(AT + 9)
    for checkpoint in held:
        run = new_run().resume(checkpoint)
        start = run.global_step
        assert run.now() == whole.used[start]
        run.until(AT + 5).apply(Multiply(NAME, 1.5))
        run.until(AT + 7).apply(Release(NAME))
        run.until(AT + 9)
        assert run.used == whole.used[start:]
        assert run.losses == whole.losses[start:]
        assert all(map(torch.equal, run.weights(), whole.weights()))


@pytest.mark.parametrize("operation", ["hold", "set"])
@pytest.mark.parametrize("name", [name for name in EVERY if name != "none"])
def test_a_followed_scheduler_is_what_it_was_to_everybody_else(name: str, operation: str) -> None:
    run = Run(EVERY[name], RATES)
    plain_type, keys = type(run.torch_scheduler), set(run.torch_scheduler.state_dict())
    run.until(AT).apply(OPERATIONS[operation][0])
    run.until(AT + 2)
    scheduler = run.torch_scheduler
    assert isinstance(scheduler, plain_type)
    assert type(scheduler).__name__ == plain_type.__name__
    assert set(scheduler.state_dict()) == keys
    if hasattr(scheduler, "get_last_lr"):
        assert scheduler.get_last_lr() == run.now()
    copied = copy.copy(scheduler)
    assert type(copied) is plain_type
    if name not in {"LambdaLR", "MultiplicativeLR"}:  # lambdas cannot be pickled
        file = io.BytesIO()
        torch.save(scheduler, file)
        file.seek(0)
        assert type(torch.load(file, weights_only=False)) is plain_type
