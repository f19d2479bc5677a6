"""The demo's training run: a process of its own, which knows nothing of the demo around it.

``python -m examples.demo_chat.training --directory DIR``
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from examples.demo_chat.scenario import JOB, RATE, STEPS
from examples.offline import build_trainer
from trainer_agent import attach


def main() -> None:
    """Train."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--directory", type=Path, required=True)
    options = parser.parse_args()
    torch.set_num_threads(1)
    trainer = build_trainer(
        "sft",
        options.directory,
        max_steps=STEPS,
        learning_rate=RATE,
        lr_scheduler_type="constant",
        per_device_train_batch_size=32,
    )
    attach(trainer, job=JOB)  # the one line
    trainer.train()


if __name__ == "__main__":
    main()
