"""The learning rate under DeepSpeed: accelerate's real wrappers around an engine of the same shape.

DeepSpeed itself is not there. What stands in for it has the names and the structure that its
optimizers have, and is driven by accelerate's own wrappers, which are.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from accelerate.utils.deepspeed import (
    DeepSpeedEngineWrapper,
    DeepSpeedOptimizerWrapper,
    DeepSpeedSchedulerWrapper,
    DummyOptim,
    DummyScheduler,
)

from tests.trainer_agent.parameters.runs import EVERY, NAME, RATE, STEPS, Run, assert_same
from trainer_agent.parameters import Change, Multiply, Ramp, Release, Set, SetMode
from trainer_agent.parameters.learning_rate import LearningRate


class DeepSpeedZeroOptimizer:
    """Holds the optimizer that steps, and shows its groups as its own."""

    __module__ = "deepspeed.runtime.zero.stage_1_and_2"
    overflow = False

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer = optimizer

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        return self.optimizer.param_groups


class Engine:
    """Steps within ``backward``."""

    def __init__(self, optimizer: DeepSpeedZeroOptimizer) -> None:
        self._optimizer = optimizer

    def set_gradient_accumulation_boundary(self, *, is_boundary: bool) -> None:
        assert is_boundary

    def backward(self, loss: None) -> None:
        """The run has gone back already."""

    def step(self) -> None:
        self._optimizer.optimizer.step()
        self._optimizer.optimizer.zero_grad()


class EngineRun(Run):
    """A run whose trainer makes optimizer and schedule itself, as transformers does it."""

    def __init__(self, name: str) -> None:
        def build(optimizer: torch.optim.Optimizer) -> Any:
            inner = DeepSpeedZeroOptimizer(optimizer)
            self.wrapper = DeepSpeedOptimizerWrapper(inner)
            self.engine = DeepSpeedEngineWrapper(Engine(inner))
            return EVERY[name](self.wrapper)

        super().__init__(build, wrap=lambda _, scheduler: (self.wrapper, scheduler))

    def learn(self) -> None:
        super().learn()
        self.engine.backward(None, sync_gradients=True)


@pytest.fixture(autouse=True)
def accelerator() -> Iterator[None]:
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    Accelerator(cpu=True)  # accelerate's wrappers look for its state
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


@pytest.mark.parametrize("name", ["linear", "cosine", "constant", "CosineAnnealingLR"])
@pytest.mark.parametrize(
    "change",
    [Set(NAME, 0.05), Set(NAME, 0.05, mode=SetMode.HOLD, hold_steps=4), Ramp(NAME, 0.05, 3)],
)
def test_with_the_trainers_own_schedule_it_is_as_without_deepspeed(
    name: str, change: Change
) -> None:
    engine, bare = EngineRun(name), Run(EVERY[name])
    for run in (engine, bare):
        run.until(7).apply(change)
        run.until(13).apply(Multiply(NAME, 0.5))
        run.until(15).apply(Release(NAME))
        run.until(STEPS)
    assert_same(engine, bare)


def reason(optimizer: Any, scheduler: Any) -> str:
    refused = LearningRate(optimizer, scheduler).spec().unavailable_reason
    assert refused is not None
    assert "DeepSpeed runs the optimizer step and the schedule itself" in refused
    assert "leave `optimizer` and `scheduler` out" in refused
    return refused


def test_what_the_engine_schedules_itself_is_refused() -> None:
    run = EngineRun("linear")
    driven = DeepSpeedSchedulerWrapper(run.torch_scheduler, run.wrapper)
    reason(run.wrapper, driven)
    reason(run.wrapper, DummyScheduler(run.wrapper))
    stand_in = DummyOptim([torch.nn.Parameter(torch.zeros(1))], lr=RATE)
    reason(stand_in, DummyScheduler(stand_in))


def test_a_schedule_that_drives_other_groups_than_those_of_the_engine_is_refused() -> None:
    run = EngineRun("linear")
    reason(run.wrapper, Run(EVERY["linear"]).torch_scheduler)


def test_without_a_schedule_nothing_shows_that_writes_would_arrive() -> None:
    reason(EngineRun("linear").wrapper, None)
