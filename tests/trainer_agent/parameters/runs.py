"""Tiny real training runs, with or without a steered learning rate."""

from __future__ import annotations

import io
import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.optim import lr_scheduler as torch_schedulers
from torch.optim.swa_utils import SWALR
from transformers import get_scheduler

from trainer_agent.parameters import Applied, Boundary, Change, Reading
from trainer_agent.parameters.learning_rate import LearningRate

STEPS = 20
RATE = 0.1
NAME = "learning_rate"

Build = Callable[[torch.optim.Optimizer], Any]

# What plateau schedulers are told after each step: better for a while, then worse, then better.
METRICS = [
    1.0 - 0.1 * n if n < 6 else 0.9 + 0.01 * n if n < 13 else 0.4 - 0.01 * n for n in range(99)
]


def _sequential(optimizer: torch.optim.Optimizer) -> Any:
    warmup = torch_schedulers.LinearLR(optimizer, start_factor=0.25, total_iters=4)
    decay = torch_schedulers.CosineAnnealingLR(optimizer, T_max=18, eta_min=0.001)
    return torch_schedulers.SequentialLR(optimizer, [warmup, decay], milestones=[4])


def _chained(optimizer: torch.optim.Optimizer) -> Any:
    return torch_schedulers.ChainedScheduler(
        [
            torch_schedulers.ConstantLR(optimizer, factor=0.5, total_iters=6),
            torch_schedulers.ExponentialLR(optimizer, gamma=0.9),
        ]
    )


class HomeMade:
    """A scheduler of nobody's family, recursive, with slots."""

    __slots__ = ("last_epoch", "optimizer")

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer = optimizer
        self.last_epoch = 0

    def step(self) -> None:
        self.last_epoch += 1
        for group in self.optimizer.param_groups:
            group["lr"] *= 0.97

    def state_dict(self) -> dict[str, Any]:
        return {"last_epoch": self.last_epoch}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.last_epoch = state["last_epoch"]


def hugging_face(kind: str, **kwargs: Any) -> Build:
    def build(optimizer: torch.optim.Optimizer) -> Any:
        return get_scheduler(
            kind,
            optimizer,
            num_warmup_steps=0 if kind == "constant" else 4,
            num_training_steps=STEPS + 2,
            scheduler_specific_kwargs=kwargs,
        )

    return build


TORCH: dict[str, Build] = {
    "LambdaLR": lambda o: torch_schedulers.LambdaLR(o, lambda n: 0.95**n),
    "MultiplicativeLR": lambda o: torch_schedulers.MultiplicativeLR(o, lambda n: 0.9 + 0.01 * n),
    "StepLR": lambda o: torch_schedulers.StepLR(o, step_size=5, gamma=0.5),
    "MultiStepLR": lambda o: torch_schedulers.MultiStepLR(o, milestones=[4, 9, 14]),
    "ConstantLR": lambda o: torch_schedulers.ConstantLR(o, factor=0.3, total_iters=8),
    "LinearLR": lambda o: torch_schedulers.LinearLR(o, total_iters=8),
    "ExponentialLR": lambda o: torch_schedulers.ExponentialLR(o, gamma=0.93),
    "SequentialLR": _sequential,
    "CosineAnnealingLR": lambda o: torch_schedulers.CosineAnnealingLR(o, T_max=8, eta_min=0.001),
    "ChainedScheduler": _chained,
    "ReduceLROnPlateau": lambda o: torch_schedulers.ReduceLROnPlateau(o, factor=0.5, patience=1),
    "CyclicLR": lambda o: torch_schedulers.CyclicLR(o, base_lr=0.01, max_lr=0.2, step_size_up=4),
    "CosineAnnealingWarmRestarts": lambda o: torch_schedulers.CosineAnnealingWarmRestarts(
        o, T_0=6, eta_min=0.001
    ),
    "OneCycleLR": lambda o: torch_schedulers.OneCycleLR(o, max_lr=0.2, total_steps=STEPS + 2),
    "PolynomialLR": lambda o: torch_schedulers.PolynomialLR(o, total_iters=STEPS + 4, power=2.0),
    "SWALR": lambda o: SWALR(o, swa_lr=0.02, anneal_epochs=8),
}
HUGGING_FACE: dict[str, Build] = {
    "linear": hugging_face("linear"),
    "cosine": hugging_face("cosine"),
    "cosine_with_restarts": hugging_face("cosine_with_restarts", num_cycles=2),
    "polynomial": hugging_face("polynomial"),
    "constant": hugging_face("constant"),
    "constant_with_warmup": hugging_face("constant_with_warmup"),
    "inverse_sqrt": hugging_face("inverse_sqrt"),
    "reduce_lr_on_plateau": hugging_face("reduce_lr_on_plateau", factor=0.5, patience=1),
    "cosine_with_min_lr": hugging_face("cosine_with_min_lr", min_lr=0.01),
    "cosine_warmup_with_min_lr": hugging_face("cosine_warmup_with_min_lr", min_lr_rate=0.1),
    "warmup_stable_decay": hugging_face("warmup_stable_decay", num_decay_steps=6),
    "greedy": hugging_face("greedy", patience=1, factor=0.8, min_lr=1e-4, max_lr=0.15),
}
OTHERS: dict[str, Build] = {"none": lambda _: None, "home-made": HomeMade}
EVERY: dict[str, Build] = {**TORCH, **HUGGING_FACE, **OTHERS}


@dataclass
class Run:
    """A model in training. ``global_step`` optimizer steps have been made."""

    build: Build
    rates: Sequence[Any] = (RATE,)
    steered: bool = True
    names: Sequence[str | None] = (None, None, None)
    wrap: Callable[[Any, Any], tuple[Any, Any]] = lambda optimizer, scheduler: (
        optimizer,
        scheduler,
    )
    optimizer_class: type[torch.optim.Optimizer] = torch.optim.AdamW
    options: Mapping[str, Any] = field(default_factory=dict)
    max_steps: int | None = STEPS
    learns: bool = True
    """False: the optimizer has no gradients, which is faster where only the rates matter."""

    def __post_init__(self) -> None:
        torch.manual_seed(7)
        self.layers = torch.nn.ModuleList(torch.nn.Linear(3, 3) for _ in self.rates)
        groups: list[dict[str, Any]] = []
        for layer, rate, name in zip(self.layers, self.rates, self.names, strict=False):
            group: dict[str, Any] = {"params": list(layer.parameters()), "lr": rate}
            groups.append(group if name is None else {**group, "name": name})
        self.torch_optimizer: Any = self.optimizer_class(groups, **self.options)
        self.torch_scheduler = self.build(self.torch_optimizer)
        self.optimizer, self.scheduler = self.wrap(self.torch_optimizer, self.torch_scheduler)
        self.global_step = 0
        self.used: list[list[float]] = []
        self.losses: list[float] = []
        self.pending: list[Applied] = []
        if self.steered:
            self.lr = LearningRate(self.optimizer, self.scheduler)

    @property
    def boundary(self) -> Boundary:
        return Boundary(self.global_step, self.max_steps)

    @property
    def groups(self) -> list[dict[str, Any]]:
        groups: list[dict[str, Any]] = self.torch_optimizer.param_groups
        return groups

    def now(self, key: str = "lr") -> list[float]:
        return [float(group[key]) for group in self.groups if key in group]

    def step(self) -> None:
        """One optimizer step, one scheduler step, then what a callback does at the boundary."""
        if self.learns:
            self.learn()
        self.optimizer.step()
        self.used.append(self.now())
        reading = self.lr.read(synchronise=True) if self.steered else Reading({})
        self.step_scheduler()
        self.global_step += 1
        if self.steered:
            for applied in self.pending:
                assert self.lr.verify(applied, reading, self.boundary) is None
            self.pending.clear()
            self.lr.tick(self.boundary)

    def learn(self) -> None:
        x = torch.randn(4, 3, generator=torch.Generator().manual_seed(self.global_step))
        for layer in self.layers:
            x = torch.tanh(layer(x))
        loss: Any = (x - 0.5).square().mean()
        self.optimizer.zero_grad()
        loss.backward()
        self.losses.append(loss.item())

    def step_scheduler(self) -> None:
        if self.scheduler is None:
            return
        with warnings.catch_warnings():
            # torch warns of schedulers built after the optimizer was wrapped, and of its own calls.
            warnings.simplefilter("ignore", UserWarning)
            if hasattr(self.torch_scheduler, "patience"):
                self.scheduler.step(METRICS[self.global_step])
            else:
                self.scheduler.step()

    def apply(self, change: Change) -> Applied:
        applied = self.lr.apply(change, self.boundary)
        self.pending.append(applied)
        return applied

    def until(self, global_step: int) -> Run:
        while self.global_step < global_step:
            self.step()
        return self

    def weights(self) -> list[torch.Tensor]:
        return [parameter.detach().clone() for parameter in self.layers.parameters()]

    def checkpoint(self) -> dict[str, Any]:
        """What a checkpoint holds, as a file would: ours through JSON, torch's through pickle."""
        held = {
            "layers": self.layers.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": None if self.scheduler is None else self.scheduler.state_dict(),
            "global_step": self.global_step,
            "ours": json.dumps(self.lr.state_dict(), allow_nan=False) if self.steered else "{}",
        }
        return saved_and_loaded(held)

    def resume(self, held: dict[str, Any]) -> Run:
        self.layers.load_state_dict(held["layers"])
        self.optimizer.load_state_dict(held["optimizer"])
        if self.scheduler is not None:
            self.scheduler.load_state_dict(held["scheduler"])
        self.global_step = held["global_step"]
        if self.steered:
            self.lr.load_state_dict(json.loads(held["ours"]))
        return self


def saved_and_loaded(held: dict[str, Any]) -> dict[str, Any]:
    file = io.BytesIO()
    torch.save(held, file)
    file.seek(0)
    loaded: dict[str, Any] = torch.load(file, weights_only=False)
    return loaded


def own_rates(
    build: Build, steps: int = STEPS, rates: Sequence[Any] = (RATE,)
) -> list[list[float]]:
    """What an unsteered scheduler gives at each boundary, for each group."""
    run = Run(build, rates, steered=False, learns=False)
    seen = [run.now()]
    for _ in range(steps):
        run.step()
        seen.append(run.now())
    return seen


def assert_same(one: Run, other: Run) -> None:
    """The runs are the same to the bit."""
    assert one.used == other.used
    assert one.losses == other.losses
    assert one.now() == other.now()
    assert one.now("initial_lr") == other.now("initial_lr")
    assert getattr(one.torch_scheduler, "base_lrs", None) == getattr(
        other.torch_scheduler, "base_lrs", None
    )
    for mine, theirs in zip(one.weights(), other.weights(), strict=True):
        assert torch.equal(mine, theirs)
