"""Optimizers and schedulers inside accelerate's wrappers, and those that cannot be steered."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.scheduler import AcceleratedScheduler
from accelerate.state import AcceleratorState, GradientState
from accelerate.utils.deepspeed import DummyOptim, DummyScheduler
from transformers import get_scheduler
from transformers.optimization import Adafactor, AdafactorSchedule
from transformers.trainer_pt_utils import LayerWiseDummyOptimizer

from tests.trainer_agent.parameters.runs import EVERY, NAME, RATE, STEPS, Run, assert_same
from trainer_agent.parameters import (
    Change,
    Multiply,
    Operation,
    Ramp,
    Refused,
    Release,
    Schedule,
    Set,
    SetMode,
    Shape,
)
from trainer_agent.parameters.learning_rate import LearningRate

AT = 7


@pytest.fixture
def accelerator() -> Iterator[Accelerator]:
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    yield Accelerator(cpu=True)
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


@pytest.mark.parametrize("name", ["cosine", "CosineAnnealingLR", "OneCycleLR", "SequentialLR"])
@pytest.mark.parametrize(
    "change",
    [
        Set(NAME, 0.05),
        Set(NAME, 0.05, mode=SetMode.HOLD, hold_steps=4),
        Ramp(NAME, 0.05, 3),
        Schedule(NAME, Shape.LINEAR),
    ],
)
def test_wrapped_by_accelerate_or_not_is_the_same(
    accelerator: Accelerator, name: str, change: Change
) -> None:
    def wrap(optimizer: Any, scheduler: Any) -> tuple[Any, Any]:
        prepared = accelerator.prepare_optimizer(optimizer)
        return prepared, accelerator.prepare_scheduler(scheduler)

    wrapped, bare = Run(EVERY[name], wrap=wrap), Run(EVERY[name])
    assert isinstance(wrapped.optimizer, AcceleratedOptimizer)
    assert isinstance(wrapped.scheduler, AcceleratedScheduler)
    for run in (wrapped, bare):
        run.until(AT).apply(change)
        run.until(AT + 6).apply(Multiply(NAME, 0.5))
        run.until(AT + 8).apply(Release(NAME))
        run.until(STEPS)
    assert_same(wrapped, bare)


@pytest.mark.parametrize("name", ["cosine", "CosineAnnealingLR"])
@pytest.mark.parametrize("change", [Set(NAME, 0.05), Set(NAME, 0.05, mode=SetMode.HOLD)])
def test_a_step_that_the_scaler_skipped_is_as_promised(name: str, change: Change) -> None:
    run = Run(EVERY[name]).until(AT)
    applied = run.apply(change)
    run.global_step += 1  # neither the optimizer's step nor the scheduler's ran
    assert run.lr.verify(applied, run.lr.read(), run.boundary) is None
    run.pending.clear()
    run.until(STEPS)


def why(optimizer: Any, scheduler: Any = None) -> str:
    rate = LearningRate(optimizer, scheduler)
    spec = rate.spec()
    assert spec.operations == frozenset()
    assert spec.current is None
    assert set(spec.unavailable) == set(Operation)
    with pytest.raises(Refused) as refused:
        rate.apply(Set(NAME, 0.1), Run(EVERY["none"]).boundary)
    assert refused.value.reason == "UNAVAILABLE"
    rate.tick(Run(EVERY["none"]).boundary)
    assert rate.state_dict() == {}
    reason = spec.unavailable_reason
    assert reason is not None
    assert reason in refused.value.message
    return reason


def some_parameter() -> torch.nn.Parameter:
    return torch.nn.Parameter(torch.zeros(2, 2))


def test_layer_wise_optimizers_are_refused() -> None:
    parameter = some_parameter()
    layers = {parameter: torch.optim.SGD([parameter], lr=RATE)}
    dummy: Any = LayerWiseDummyOptimizer
    optimizer = dummy(optimizer_dict=layers, lr=RATE)
    assert "layer-wise" in why(optimizer)


def test_deepspeed_is_refused() -> None:
    assert "DeepSpeed" in why(DummyOptim([some_parameter()]), DummyScheduler(None))
    engine = type("DeepSpeedZeroOptimizer", (), {"__module__": "deepspeed.runtime.zero.stage3"})()
    engine.param_groups = [{"lr": RATE}]
    wrapper = type("Wrapper", (), {})()
    wrapper.optimizer = engine
    assert "DeepSpeed" in why(wrapper)
    scheduler = type("DeepSpeedSchedulerWrapper", (), {"step": lambda self: None})()
    assert "DeepSpeed" in why(torch.optim.SGD([some_parameter()], lr=RATE), scheduler)


def test_optimizers_that_compute_their_own_rate_are_refused() -> None:
    untyped: Any = Adafactor, AdafactorSchedule
    build_optimizer, build_scheduler = untyped
    optimizer = build_optimizer([some_parameter()])
    assert "relative step" in why(optimizer, build_scheduler(optimizer))


def test_unfit_schedulers_and_optimizers_are_refused() -> None:
    optimizer, other = (torch.optim.SGD([some_parameter()], lr=RATE) for _ in range(2))
    scheduler = get_scheduler("constant", other)
    assert "drives another optimizer" in why(optimizer, scheduler)
    assert "no step method" in why(optimizer, object())
    assert "no parameter groups" in why(object())
    many = torch.optim.SGD([some_parameter()], lr=torch.tensor([0.1]))
    many.param_groups[0]["lr"] = torch.ones(2)
    assert "2 elements" in why(many)


def test_one_scheduler_is_steered_once() -> None:
    run = Run(EVERY["CosineAnnealingLR"]).until(AT)
    run.apply(Set(NAME, 0.05))
    assert "steered already" in why(run.optimizer, run.scheduler)
    now = run.now()
    run.lr.detach()
    assert run.now() == now
    second = LearningRate(run.optimizer, run.scheduler)
    second.apply(Multiply(NAME, 0.5), run.boundary)
    assert run.now() == [now[0] * 0.5]
