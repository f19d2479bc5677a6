"""The layer over a scheduler harms nobody: not when it fails, not when the scheduler does."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.optim.lr_scheduler import ExponentialLR

from tests.trainer_agent.parameters.runs import EVERY, NAME, STEPS, Run, own_rates
from trainer_agent.parameters import Multiply, Refused, Release, Set, SetMode
from trainer_agent.parameters import steering as steering_module

AT = 7


def test_a_failure_of_ours_never_reaches_the_loop_and_is_reported_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = Run(EVERY["ExponentialLR"]).until(AT)
    applied = run.lr.apply(Set(NAME, 0.05, mode=SetMode.HOLD), run.boundary)

    def broken(*_: Any) -> None:
        raise OSError("broken")

    with monkeypatch.context() as patched:
        patched.setattr(steering_module, "put_rate", broken)
        run.torch_optimizer.step()
        used = run.lr.read()
        run.torch_scheduler.step()  # must not raise
    run.global_step += 1
    assert type(run.torch_scheduler) is ExponentialLR
    assert "broken" in (run.lr.verify(applied, used, run.boundary) or "")
    with pytest.raises(RuntimeError, match="could not be followed") as failed:
        run.lr.tick(run.boundary)
    assert isinstance(failed.value.__cause__, OSError)
    run.lr.tick(run.boundary)
    run.until(STEPS)
    run.apply(Multiply(NAME, 0.5))
    run.until(STEPS + 2)


def test_an_error_of_the_scheduler_is_the_schedulers() -> None:
    run = Run(EVERY["OneCycleLR"]).until(AT)
    run.apply(Set(NAME, 0.05, mode=SetMode.HOLD))
    run.until(STEPS + 2)
    with pytest.raises(ValueError, match="Tried to step"):
        run.step()
    assert run.now() == [0.05]


def test_a_step_within_a_step_is_part_of_it() -> None:
    class Twice(ExponentialLR):
        def step(self, epoch: int | None = None) -> None:
            if self.last_epoch >= 0 and self.last_epoch % 2 == 0:
                self.last_epoch += 1
                self.step(epoch)
                return
            super().step(epoch)

    def build(optimizer: torch.optim.Optimizer) -> Any:
        return Twice(optimizer, gamma=0.9)

    own = own_rates(build)
    run = Run(build).until(AT)
    run.apply(Multiply(NAME, 2.0))
    run.until(STEPS)
    assert [used[0] for used in run.used[AT:]] == pytest.approx(
        [2 * rates[0] for rates in own[AT:STEPS]], rel=1e-12
    )


class Frozen(type):
    """A metaclass that lets nobody derive from its classes."""

    def __new__(cls, name: str, bases: tuple[type, ...], namespace: dict[str, Any]) -> Any:
        if any(isinstance(base, Frozen) for base in bases):
            raise TypeError(f"{bases[0].__name__} is final")
        return super().__new__(cls, name, bases, namespace)


class Final(metaclass=Frozen):
    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer = optimizer

    def step(self) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] *= 0.9


def test_a_scheduler_that_cannot_be_followed_refuses_and_keeps_its_rates() -> None:
    run = Run(Final).until(AT)
    with pytest.raises(Refused, match="Final is final") as refused:
        run.apply(Set(NAME, 0.05))
    assert refused.value.reason == "SCHEDULER_NOT_STEERABLE"
    assert run.until(STEPS).used == own_rates(Final)[:STEPS]


def test_somebody_else_who_writes_the_rate_is_found_out() -> None:
    for name in ("cosine", "CosineAnnealingLR", "none"):
        run = Run(EVERY[name]).until(AT)
        applied = run.lr.apply(Set(NAME, 0.05), run.boundary)
        run.groups[0]["lr"] = 0.01
        run.torch_optimizer.step()
        used = run.lr.read()
        run.step_scheduler()
        run.global_step += 1
        problem = run.lr.verify(applied, used, run.boundary)
        assert problem == "the step used 0.01 in group 0 instead of 0.05"
        run.lr.apply(Multiply(NAME, 2.0), run.boundary)
        used = run.lr.read()
        run.step_scheduler()
        run.global_step += 1
        run.groups[0]["lr"] = 0.02
        assert "something else writes it" in (run.lr.verify(applied, used, run.boundary) or "")


def test_verifying_before_a_step_has_run_says_so() -> None:
    run = Run(EVERY["cosine"]).until(AT)
    applied = run.lr.apply(Set(NAME, 0.05), run.boundary)
    assert run.lr.verify(applied, run.lr.read(), run.boundary) == "no step has run since step 7"


def test_a_foreign_change_cannot_be_undone() -> None:
    run, other = Run(EVERY["cosine"]), Run(EVERY["cosine"])
    applied = run.lr.apply(Set(NAME, 0.05, mode=SetMode.HOLD), run.boundary)
    torch_free = type(applied)(
        applied.change, applied.boundary, applied.old, applied.new, before=None
    )
    with pytest.raises(ValueError, match="not made here"):
        other.lr.undo(torch_free)


def test_a_released_scheduler_has_its_class_and_list_of_rates_back() -> None:
    run = Run(EVERY["SequentialLR"]).until(AT)
    inner = run.torch_scheduler._schedulers[1]
    run.apply(Set(NAME, 0.05, mode=SetMode.HOLD))
    own = own_rates(EVERY["SequentialLR"])
    run.until(AT + 3)
    assert run.torch_scheduler.get_last_lr() == [0.05]
    assert inner.get_last_lr() == own[AT + 3]
    run.apply(Release(NAME))
    assert run.torch_scheduler.get_last_lr() == own[AT + 3]
