"""What a training run shows of itself to those who look for what can be changed in it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Run:
    """A training run at its beginning.

    Whatever is None is not known: a callback that was given to a trainer, rather than attached,
    does not see the trainer; a raw loop has neither arguments nor state.
    """

    optimizer: Any = None
    """The optimizer, with any wrappers."""
    lr_scheduler: Any = None
    """Its scheduler, with any wrappers."""
    learning_rate: Any = None
    """The live learning rate, for what changes the schedule below it."""
    model: Any = None
    """The model, with any wrappers."""
    trainer: Any = None
    """The transformers trainer."""
    args: Any = None
    """Its ``TrainingArguments``."""
    state: Any = None
    """Its ``TrainerState``."""
    method: str = ""
    """Training method, such as "sft" or "grpo"; empty: unknown."""
