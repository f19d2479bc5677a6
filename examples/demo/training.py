"""The demo's training run: a process of its own, which knows nothing of the demo around it.

``python -m examples.demo.training --method sft --directory DIR``
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch

from examples.demo.scenarios import ANSWERS_FILE, SCENARIOS
from examples.offline import answers, build_trainer, words
from trainer_agent import attach

ASKED = 4
UNSEEN_WORDS = 1
"""Seed of words that are not in the training data."""


def main() -> None:
    """Train."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--method", choices=SCENARIOS, required=True)
    parser.add_argument("--directory", type=Path, required=True)
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    scenario = SCENARIOS[options.method]
    if options.quick:
        scenario = scenario.quick()
    torch.set_num_threads(1)
    trainer = build_trainer(
        scenario.method,
        options.directory,
        max_steps=scenario.steps,
        learning_rate=scenario.too_low,
        # Level, then down to 0 over the second half.
        lr_scheduler_type="warmup_stable_decay",
        lr_scheduler_kwargs={"num_decay_steps": scenario.steps // 2},
        **scenario.arguments,
    )
    asked = words(ASKED, UNSEEN_WORDS) if scenario.method == "sft" else []
    before = answers(trainer, asked) if asked else []

    attach(trainer, job=scenario.job)  # the one line
    trainer.train()

    if asked:
        after = answers(trainer, asked)
        written = {"asked": asked, "before": before, "after": after}
        (options.directory / ANSWERS_FILE).write_text(json.dumps(written), encoding="utf-8")


if __name__ == "__main__":
    main()
