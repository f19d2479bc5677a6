"""A scheduler of transformers whose warm-up can be re-planned, over two parameter groups."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from transformers import get_scheduler

from trainer_agent.parameters import Boundary, LiveParameter, Set
from trainer_agent.parameters.learning_rate import LearningRate
from trainer_agent.parameters.warmup import find
from trainer_agent.run import Run

KEYWORDS: dict[str, dict[str, Any]] = {
    "cosine_with_restarts": {"num_cycles": 2},
    "reduce_lr_on_plateau": {"factor": 0.5, "patience": 1},
    "cosine_with_min_lr": {"min_lr": 0.01},
    "cosine_warmup_with_min_lr": {"min_lr_rate": 0.1},
    "warmup_stable_decay": {"num_decay_steps": 4},
}
WITHOUT = {"constant", "reduce_lr_on_plateau", "greedy"}
TOTAL, WARMUP, AT, LATER = 16, 6, 3, 9


class Plan:
    """A scheduler of transformers over two parameter groups, with and without us."""

    def __init__(self, kind: str, warmup: int = WARMUP, *, done: int = 0) -> None:
        groups = [{"params": [torch.nn.Parameter(torch.ones(1))], "lr": lr} for lr in (0.1, 0.03)]
        self.optimizer = torch.optim.SGD(groups, lr=0.1)
        options = KEYWORDS.get(kind)
        self.args = SimpleNamespace(
            lr_scheduler_type=kind, lr_scheduler_kwargs=options, get_warmup_steps=None
        )
        self.scheduler: Any = get_scheduler(kind, self.optimizer, warmup, TOTAL, options)
        self.rate = LearningRate(self.optimizer, self.scheduler)
        run = Run(
            optimizer=self.optimizer,
            lr_scheduler=self.scheduler,
            learning_rate=self.rate,
            args=self.args,
            state=SimpleNamespace(max_steps=TOTAL),
        )
        self.found: dict[str, LiveParameter] = {each.name: each for each in find(run)}
        self.step(done)

    @property
    def here(self) -> Boundary:
        return Boundary(self.scheduler.last_epoch, TOTAL)

    @property
    def now(self) -> list[float]:
        return [group["lr"] for group in self.optimizer.param_groups]

    def step(self, steps: int = 1) -> None:
        for _ in range(steps):
            self.optimizer.step()
            self.scheduler.step(*([0.5] if hasattr(self.scheduler, "patience") else []))

    def rates(self, until: int = TOTAL) -> list[list[float]]:
        """Return the rates of the steps to come."""
        rates = []
        while self.scheduler.last_epoch < until:
            rates.append(self.now)
            self.step()
        return rates

    def set(self, value: float, name: str = "warmup_steps") -> Any:
        return self.found[name].apply(Set(name, value), self.here)
