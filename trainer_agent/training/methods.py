"""The training methods, and what each needs. Loads nothing."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final


@dataclass(frozen=True, slots=True)
class Method:
    """A training method of TRL."""

    name: str
    """What ``--method`` calls it."""
    description: str
    """What it learns from, in a few words."""
    module: str
    """Module of TRL that exports its classes."""
    prefix: str
    """What the names of its classes begin with, as in ``SFTTrainer`` and ``SFTConfig``."""
    columns: Sequence[frozenset[str]]
    """Sets of columns; a data set must have all of one of them."""
    rewarded: bool = False
    """Whether it generates, and needs a reward."""
    makes_tokenizer: bool = True
    """Whether the trainer loads the model's own tokenizer where it is given none."""

    def config_class(self) -> Any:
        """Return the class of its arguments. Loads TRL."""
        return getattr(importlib.import_module(self.module), f"{self.prefix}Config")

    def trainer_class(self) -> Any:
        """Return its trainer. Loads TRL."""
        return getattr(importlib.import_module(self.module), f"{self.prefix}Trainer")


_PAIRS: Final = frozenset({"chosen", "rejected"})
_PROMPTED_PAIRS: Final = _PAIRS | {"prompt"}
_PROMPTS: Final = frozenset({"prompt"})

METHODS: Final = {
    method.name: method
    for method in (
        Method(
            "sft",
            "texts, conversations, or prompts with their completions",
            "trl",
            "SFT",
            (
                frozenset({"text"}),
                frozenset({"messages"}),
                frozenset({"prompt", "completion"}),
                frozenset({"input_ids"}),
            ),
        ),
        Method("dpo", "pairs of a better and a worse answer", "trl", "DPO", (_PAIRS,)),
        Method(
            "orpo",
            "such pairs, without a reference model",
            "trl.experimental.orpo",
            "ORPO",
            (_PROMPTED_PAIRS,),
            makes_tokenizer=False,
        ),
        Method(
            "kto",
            "single answers, each marked good or bad",
            "trl",
            "KTO",
            (frozenset({"prompt", "completion", "label"}), _PAIRS),
        ),
        Method("reward", "pairs, into a reward model", "trl", "Reward", (_PAIRS,)),
        Method("rloo", "prompts and a reward", "trl", "RLOO", (_PROMPTS,), rewarded=True),
        Method("grpo", "prompts and a reward", "trl", "GRPO", (_PROMPTS,), rewarded=True),
    )
}
"""Every method, by its name."""
