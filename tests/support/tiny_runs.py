"""Runs of the tiny trainers, and what they came to."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import Trainer, TrainerCallback

from examples.offline import build_trainer

LOGGED = ("loss", "grad_norm", "learning_rate", "reward")


@dataclass(frozen=True)
class Outcome:
    """What a run came to, to the bit."""

    losses: dict[int, dict[str, float]]
    weights: dict[str, torch.Tensor]

    def assert_same(self, other: Outcome) -> None:
        assert self.losses == other.losses
        assert self.weights.keys() == other.weights.keys()
        for name, weight in self.weights.items():
            assert torch.equal(weight, other.weights[name]), name

    def differs(self, other: Outcome) -> bool:
        return any(
            not torch.equal(weight, other.weights[name]) for name, weight in self.weights.items()
        )


def run(
    method: str,
    output_dir: Path,
    prepare: Callable[[Trainer], object] = lambda _: None,
    *,
    resume: str | None = None,
    **args: Any,
) -> Outcome:
    """Train a tiny model and return what it came to."""
    trainer = build_trainer(method, output_dir, samples=64, **args)
    prepare(trainer)
    trainer.train(resume_from_checkpoint=resume)
    return outcome(trainer)


def outcome(trainer: Trainer) -> Outcome:
    """Return what a trained trainer came to."""
    losses = {
        int(entry["step"]): {name: entry[name] for name in LOGGED if name in entry}
        for entry in trainer.state.log_history
        if "loss" in entry
    }
    assert losses
    assert all(math.isfinite(value) for entry in losses.values() for value in entry.values())
    model: Any = trainer.model
    return Outcome(losses, {name: each.detach().clone() for name, each in model.named_parameters()})


class AtStep(TrainerCallback):
    """The plain script: does something to optimizer and scheduler at step boundaries."""

    def __init__(self, script: Callable[[int, Any, Any], None]) -> None:
        self._script = script

    def on_step_end(
        self,
        args: Any,
        state: Any,
        control: Any,
        optimizer: Any = None,
        lr_scheduler: Any = None,
        **_: Any,
    ) -> None:
        scheduler = getattr(lr_scheduler, "scheduler", lr_scheduler)
        self._script(state.global_step, optimizer, scheduler)


def set_with_torch(optimizer: Any, scheduler: Any, value: float) -> None:
    """Set the learning rate of a LambdaLR run, its schedule scaled, with torch alone."""
    reference = optimizer.param_groups[0]["lr"]
    for index, group in enumerate(optimizer.param_groups):
        old = group["lr"]
        new = value if old == reference else old * (value / reference)
        base = scheduler.base_lrs[index]
        base = new if base == old else base * (new / old)
        scheduler.base_lrs[index] = group["initial_lr"] = base
        group["lr"] = new
    scheduler._last_lr = [group["lr"] for group in optimizer.param_groups]
