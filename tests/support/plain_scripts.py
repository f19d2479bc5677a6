"""What a script writes to change a value in the middle of training, without any of our code."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from transformers import TrainerCallback
from trl.trainer.utils import add_fused_lm_head

from tests.support.tiny_runs import AtStep, set_with_torch


def write(trainer: Any, values: Mapping[str, float]) -> None:
    """Write values where torch, transformers and TRL read them, with their own means."""
    for name, value in values.items():
        match name:
            case "learning_rate":
                set_with_torch(trainer.optimizer, trainer.lr_scheduler, value)
            case "weight_decay":
                for group in trainer.optimizer.param_groups:
                    group["weight_decay"] = value if group["weight_decay"] else 0.0
            case "max_grad_norm" | "gradient_accumulation_steps" | "center_rewards_coefficient":
                setattr(trainer.args, name, value)
            case "epsilon":
                trainer.epsilon_low = value
            case "temperature":
                trainer.temperature = trainer.generation_config.temperature = value
                trainer.generation_kwargs["temperature"] = value
                add_fused_lm_head(trainer.model, value, outputs=("log_probs", "entropy"))
                if trainer.ref_model is not None:
                    add_fused_lm_head(trainer.ref_model, value)
            case "max_completion_length":
                trainer.max_completion_length = trainer.generation_config.max_new_tokens = value
                trainer.generation_kwargs["max_new_tokens"] = value
            case _:
                setattr(trainer, name, value)


def writes(values: Mapping[str, float], at: int) -> Callable[[Any], None]:
    """Return what prepares a trainer to write values at a step's end."""

    def prepare(trainer: Any) -> None:
        def script(step: int, *_: Any) -> None:
            if step == at:
                write(trainer, values)

        trainer.add_callback(AtStep(script))

    return prepare


class AtTrainBegin(TrainerCallback):
    """Does something when training begins, as a script that goes on from a checkpoint."""

    def __init__(self, script: Callable[[], object]) -> None:
        self._script = script

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._script()
