"""What the demo shows of each training method. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final, Literal

ANSWERS_FILE: Final = "answers.json"
"""In the run's directory: what an SFT model wrote before and after training."""


@dataclass(frozen=True, slots=True)
class Scenario:
    """One training run that begins too slowly, and the change that mends it.

    Attributes:
        method: Training method.
        trainer: Class of the trainer.
        learns: What the model is to learn.
        metric: What shows whether it does.
        improves: Where that metric should go.
        steps: Optimizer steps of the run.
        change_after: Optimizer steps after which the learning rate is changed.
        too_low: Learning rate at the start.
        better: Learning rate from the change on.
        arguments: More training arguments.
    """

    method: str
    trainer: str
    learns: str
    metric: str
    improves: Literal["down", "up"]
    steps: int
    change_after: int
    too_low: float
    better: float
    arguments: Mapping[str, Any] = field(default_factory=dict)

    @property
    def job(self) -> str:
        """Id of the job."""
        return f"demo-{self.method}"

    @property
    def reason(self) -> str:
        """Why the learning rate is changed."""
        return f"the {self.metric} goes {self.improves} too slowly: the learning rate is too low"

    def quick(self) -> Scenario:
        """Returns the same with a third of the steps: it shows the change, not its success."""
        return replace(self, steps=self.steps // 3, change_after=self.change_after // 3)


_REVERSAL: Final = "write words backwards"
_PREFERENCE: Final = "prefer a word written backwards to the word itself"
_ASCII: Final = "write ASCII characters, by a reward function"

SCENARIOS: Final = {
    scenario.method: scenario
    for scenario in (
        Scenario(
            method="sft",
            trainer="SFTTrainer",
            learns=_REVERSAL,
            metric="loss",
            improves="down",
            steps=300,
            change_after=60,
            too_low=2e-4,
            better=2e-3,
            arguments={"per_device_train_batch_size": 32},
        ),
        Scenario(
            method="dpo",
            trainer="DPOTrainer",
            learns=_PREFERENCE,
            metric="loss",
            improves="down",
            steps=120,
            change_after=30,
            too_low=1e-4,
            better=1e-3,
            arguments={"per_device_train_batch_size": 16},
        ),
        Scenario(
            method="orpo",
            trainer="ORPOTrainer",
            learns=_PREFERENCE,
            metric="loss",
            improves="down",
            steps=160,
            change_after=40,
            too_low=2e-4,
            better=2e-3,
            arguments={"per_device_train_batch_size": 16},
        ),
        Scenario(
            method="grpo",
            trainer="GRPOTrainer",
            learns=_ASCII,
            metric="reward",
            improves="up",
            steps=100,
            change_after=30,
            too_low=3e-4,
            better=2e-3,
            arguments={"per_device_train_batch_size": 32, "num_generations": 8},
        ),
        Scenario(
            method="rloo",
            trainer="RLOOTrainer",
            learns=_ASCII,
            metric="reward",
            improves="up",
            steps=100,
            change_after=30,
            too_low=3e-4,
            better=2e-3,
            arguments={"per_device_train_batch_size": 32, "num_generations": 8},
        ),
    )
}
"""The scenarios by method."""
