"""A training process for tests: steered, resumable, and telling of every step what it came to.

Writes one line of JSON a step to steps.jsonl in its directory: the step and its loss, bit for bit.
Goes on from the newest whole checkpoint there. To be forked from a process that has imported this
module, which takes seconds: see :class:`tests.support.forked.Forked`.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import torch
from transformers import Trainer, TrainerCallback

from examples.offline import build_trainer
from trainer_agent import attach

SAVE_STEPS = 20


class StepLog(TrainerCallback):
    """Writes what every step came to, and takes its time."""

    def __init__(self, path: Path, step_seconds: float) -> None:
        self._path = path
        self._step_seconds = step_seconds

    def on_step_end(self, *_: Any, **__: Any) -> None:
        time.sleep(self._step_seconds)  # a step of a real model takes time

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        if logs and "loss" in logs:
            line = {"step": state.global_step, "loss": float(logs["loss"]).hex()}
            with self._path.open("a") as file:
                file.write(json.dumps(line) + "\n")


def newest_whole_checkpoint(directory: Path) -> str | None:
    """The newest checkpoint that was written to its end: the trainer's state comes last."""
    for path in sorted(directory.glob("checkpoint-*"), key=lambda p: -int(p.name.split("-")[1])):
        try:
            json.loads((path / "trainer_state.json").read_text())
        except (OSError, ValueError):
            continue
        return str(path)
    return None


def build(directory: Path, max_steps: int, step_seconds: float) -> Trainer:
    """The trainer, without steering."""
    trainer = build_trainer(
        "sft",
        directory,
        samples=256,
        max_steps=max_steps,
        save_strategy="steps",
        save_steps=SAVE_STEPS,
        save_total_limit=3,
    )
    trainer.add_callback(StepLog(directory / "steps.jsonl", step_seconds))
    return trainer


def train(
    directory: Path, job: str, address: str, max_steps: int, step_seconds: float, sockets: Path
) -> None:
    """Train, steered, from the newest whole checkpoint on."""
    os.environ["MIDCOURSE_SOCKET_DIR"] = str(sockets)
    with (directory / "output.log").open("a") as log:
        os.dup2(log.fileno(), sys.stdout.fileno())
        os.dup2(log.fileno(), sys.stderr.fileno())
    torch.set_num_threads(1)
    trainer = build(directory, max_steps, step_seconds)
    attach(trainer, job=job, control_plane=address)
    trainer.train(resume_from_checkpoint=newest_whole_checkpoint(directory))
