"""What there is to know about optimizers and schedulers before steering their learning rate."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.optim.lr_scheduler import CyclicLR, LambdaLR, LRScheduler, OneCycleLR

from trainer_agent.parameters.groups import Rate, copy_of

_ENGINES = {
    "deepspeed": "DeepSpeed",
    "megatron": "Megatron-LM",
}
_ENGINE_CLASSES = {
    "DeepSpeed": "DeepSpeed",
    "MegatronLM": "Megatron-LM",
    "DummyOptim": "DeepSpeed",
    "DummyScheduler": "DeepSpeed",
}


def unwrap_optimizer(optimizer: Any) -> Any:
    """Return the optimizer inside wrappers such as accelerate's ``AcceleratedOptimizer``."""
    while hasattr(optimizer, "optimizer") and hasattr(optimizer.optimizer, "param_groups"):
        optimizer = optimizer.optimizer
    return optimizer


def unwrap_scheduler(scheduler: Any) -> Any:
    """Return the scheduler inside wrappers such as accelerate's ``AcceleratedScheduler``."""
    while not isinstance(scheduler, LRScheduler) and hasattr(
        getattr(scheduler, "scheduler", None), "step"
    ):
        scheduler = scheduler.scheduler
    return scheduler


def why_unsteerable(optimizer: Any, scheduler: Any) -> str | None:
    """Return why the learning rate cannot be changed from here; None where it can.

    Args:
        optimizer: As the training framework holds it, with any wrappers.
        scheduler: Likewise; None for a constant learning rate.
    """
    if why := why_out_of_reach(optimizer, scheduler):
        return why
    real = unwrap_optimizer(optimizer)
    groups = getattr(real, "param_groups", None)
    if not groups:
        return f"{type(real).__name__} has no parameter groups to read a learning rate from"
    for index, group in enumerate(groups):
        if group.get("lr") is None or group.get("relative_step"):
            return (
                f"{type(real).__name__} computes the learning rate of group {index} itself "
                "(relative step sizes)"
            )
        rate = group["lr"]
        if isinstance(rate, torch.Tensor) and rate.numel() != 1:
            return f"the learning rate of group {index} is a tensor of {rate.numel()} elements"
    return _scheduler_unfit(real, unwrap_scheduler(scheduler))


def why_out_of_reach(optimizer: Any, scheduler: Any = None) -> str | None:
    """Return why the optimizer that trains is not the one that is seen; None: it is.

    Args:
        optimizer: As the training framework holds it, with any wrappers.
        scheduler: Likewise.
    """
    for outer, inside in ((optimizer, "optimizer"), (scheduler, "scheduler")):
        engine = _engine(outer, inside)
        if engine is not None and not _schedule_reaches(optimizer, scheduler):
            return (
                f"{engine} runs the optimizer step and the schedule itself, inside its engine: "
                "writes from here would not reach them"
                + (
                    "; leave `optimizer` and `scheduler` out of the DeepSpeed configuration, so "
                    "that the trainer makes its own"
                    if engine == "DeepSpeed"
                    else ""
                )
            )
    if hasattr(unwrap_optimizer(optimizer), "optimizer_dict"):
        return (
            "this is a stand-in for layer-wise optimizers that step inside the backward pass, one "
            "for each parameter: its own values are used by nothing"
        )
    return None


def _schedule_reaches(optimizer: Any, scheduler: Any) -> bool:
    """Say whether a schedule outside DeepSpeed's engine sets what its optimizer steps with.

    So it is where the configuration names neither optimizer nor scheduler. The trainer makes both
    then (``transformers.integrations.deepspeed``); the engine steps the optimizer within
    ``backward``, ahead of the hooks, and the trainer steps the schedule after them, as elsewhere.
    The schedule takes effect through the groups of the optimizer that it was made for, and if
    these are the very groups of the innermost one, so does what is written there from here.
    """
    real = unwrap_scheduler(scheduler)
    if not isinstance(real, LRScheduler) or _engine(scheduler, "scheduler") is not None:
        return False
    if _is_stand_in(optimizer) or _engine(optimizer, "optimizer") != "DeepSpeed":
        return False
    mine = getattr(unwrap_optimizer(optimizer), "param_groups", None) or []
    its = getattr(real.optimizer, "param_groups", None) or []
    return (
        bool(mine)
        and len(mine) == len(its)
        and all(own is other for own, other in zip(mine, its, strict=True))
    )


def _is_stand_in(optimizer: Any) -> bool:
    return any(cls.__name__ == "DummyOptim" for cls in type(unwrap_optimizer(optimizer)).__mro__)


def _scheduler_unfit(optimizer: Any, scheduler: Any) -> str | None:
    if scheduler is None:
        return None
    name = type(scheduler).__name__
    if not callable(getattr(scheduler, "step", None)):
        return f"{name} has no step method, so that its schedule cannot be followed"
    if is_steered(scheduler):
        return f"this {name} is being steered already: detach the other one first"
    driven = unwrap_optimizer(getattr(scheduler, "optimizer", optimizer))
    if driven is not optimizer:
        return f"this {name} drives another optimizer than the one that trains"
    return None


def _engine(outer: Any, inside: str) -> str | None:
    while outer is not None:
        for cls in type(outer).__mro__:
            package = cls.__module__.partition(".")[0]
            if package in _ENGINES:
                return _ENGINES[package]
            for prefix, engine in _ENGINE_CLASSES.items():
                if cls.__name__.startswith(prefix):
                    return engine
        outer = getattr(outer, inside, None)
    return None


STEERED_MARK = "__midcourse_steering__"
"""The attribute of a class that stands in for a scheduler's class while it is steered."""


def is_steered(scheduler: Any) -> bool:
    """Say whether a scheduler's step is being followed."""
    return STEERED_MARK in vars(type(scheduler))


def sinks_scales(scheduler: Any) -> bool:
    """Say whether a scheduler computes its value as its base value times a function of its count.

    That is ``LambdaLR`` and with it most of Hugging Face's schedules, but not a subclass that
    computes in another way.
    """
    cls = type(scheduler)
    return (
        isinstance(scheduler, LambdaLR)
        and all(
            getattr(cls, name) is getattr(LambdaLR, name)
            for name in ("get_lr", "step", "_update_lr")
        )
        and all("initial_lr" in group for group in scheduler.optimizer.param_groups)
    )


def original_bases(scheduler: Any, param_groups: Sequence[dict[str, Any]]) -> list[Rate] | None:
    """Return the value that a schedule was built around, for each group; None: it does not say.

    For a one-cycle or cyclic schedule that is its maximum, else the rate that the optimizer was
    built with.
    """
    if isinstance(scheduler, OneCycleLR):
        return [copy_of(group["max_lr"]) for group in param_groups]
    if isinstance(scheduler, CyclicLR):
        return _as_many(scheduler.max_lrs, param_groups)
    for name in ("base_lrs", "_init_lrs"):  # torch's schedulers; transformers' GreedyLR
        bases = getattr(scheduler, name, None)
        if bases is not None:
            return _as_many(bases, param_groups)
    if all("initial_lr" in group for group in param_groups):
        return [copy_of(group["initial_lr"]) for group in param_groups]
    return None


def _as_many(rates: Sequence[Rate], param_groups: Sequence[dict[str, Any]]) -> list[Rate] | None:
    return [copy_of(rate) for rate in rates] if len(rates) == len(param_groups) else None
