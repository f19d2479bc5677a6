"""A training process for tests that is killed again and again, and leaves a trace of every step.

``python -m tests.integration.killed_run`` would take seconds to import what a run of a few weights
needs, so that it is forked from a process that has: see :class:`tests.support.forked.Forked`.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import Trainer, TrainerCallback

from tests.integration.steered_run import newest_whole_checkpoint
from tests.support.plain_trainer import Points, plain_trainer
from trainer_agent import attach

SAMPLES = 16_384
"""So many that a run stays within one epoch, where a plain script may change the accumulation."""


@dataclass(frozen=True)
class Order:
    """What to run."""

    directory: Path
    job: str
    max_steps: int
    control_plane: str = ""
    step_seconds: float = 0.0
    """Longer than it would take, so that something can happen meanwhile."""
    replay: str | None = None
    args: dict[str, Any] = field(default_factory=dict)
    env: dict[str, str] = field(default_factory=dict)


class Trace(TrainerCallback):
    """Writes what every step used, and what it came to, to the bit."""

    def __init__(self, path: Path, step_seconds: float = 0.0) -> None:
        self._path = path
        self._step_seconds = step_seconds
        self._line: dict[str, Any] = {}

    def on_pre_optimizer_step(
        self, args: Any, state: Any, control: Any, optimizer: Any = None, **_: Any
    ) -> None:
        self._line = {
            "step": state.global_step + 1,
            "learning_rate": [group["lr"] for group in optimizer.param_groups],
            "weight_decay": [group["weight_decay"] for group in optimizer.param_groups],
            "max_grad_norm": args.max_grad_norm,
            "gradient_accumulation_steps": args.gradient_accumulation_steps,
        }

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        weights = {name: each.flatten().tolist() for name, each in model.named_parameters()}
        with self._path.open("a") as file:
            file.write(json.dumps({**self._line, "weights": weights}) + "\n")
        time.sleep(self._step_seconds)  # a step of a real model takes time


def read_trace(directory: Path) -> dict[int, dict[str, Any]]:
    """What every step used and came to, in the lineage that stands."""
    lineage: dict[int, dict[str, Any]] = {}
    try:
        lines = (directory / "trace.jsonl").read_text().splitlines(keepends=True)
    except FileNotFoundError:
        return {}
    for line in lines:
        if not line.endswith("\n"):
            continue  # killed, or looked at, in the middle of it
        entry = json.loads(line)
        step = entry["step"]
        lineage = {at: each for at, each in lineage.items() if at < step}
        lineage[step] = entry
    return lineage


def build(order: Order) -> Trainer:
    """The trainer, without steering."""
    trainer = plain_trainer(
        order.directory,
        train_dataset=Points(SAMPLES),
        **{
            "max_steps": order.max_steps,
            "learning_rate": 0.01,
            "lr_scheduler_type": "linear",
            "weight_decay": 0.1,
            "gradient_accumulation_steps": 2,
            "save_strategy": "steps",
            "save_steps": 2,
            "save_total_limit": 3,
            **order.args,
        },
    )
    trainer.add_callback(Trace(order.directory / "trace.jsonl", order.step_seconds))
    return trainer


def train(order: Order) -> None:
    """Train, from the newest whole checkpoint on."""
    os.environ.update(order.env)
    with (order.directory / "output.log").open("a") as log:
        os.dup2(log.fileno(), sys.stdout.fileno())
        os.dup2(log.fileno(), sys.stderr.fileno())
    torch.set_num_threads(1)
    trainer = build(order)
    if order.replay is None:
        attach(trainer, order.job, order.control_plane)
    else:
        attach(trainer, order.job, replay=order.replay)
    trainer.train(resume_from_checkpoint=newest_whole_checkpoint(order.directory))


def scripted(order: Order, script: Callable[[Trainer, int], None]) -> dict[int, dict[str, Any]]:
    """The trace of a run that nobody steers: its script does what it does at each step's end."""
    order.directory.mkdir(parents=True)
    trainer = build(order)

    class Script(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            script(trainer, state.global_step)

    trainer.add_callback(Script())
    trainer.train()
    return read_trace(order.directory)
