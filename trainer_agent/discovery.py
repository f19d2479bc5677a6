"""Finds what can be changed live in a training run, and what every step can tell for free."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from trainer_agent.parameters.learning_rate import LearningRate

if TYPE_CHECKING:
    from trainer_agent.parameters import LiveParameter


@dataclass(frozen=True, slots=True)
class Found:
    """What there is in a run."""

    parameters: dict[str, LiveParameter]
    """Live parameters by name. One that can not be changed in this run is among them: its
    declaration says why."""
    metrics: dict[str, Callable[[], float | None]]
    """Values that every step reports as metrics, by name, as they lie on the host; None: one does
    not lie there."""


def find(optimizer: Any, lr_scheduler: Any) -> Found:
    """Look at a run.

    Args:
        optimizer: The optimizer, wrapped or not.
        lr_scheduler: Its scheduler, wrapped or not; None: the learning rate is constant.
    """
    learning_rate = LearningRate(optimizer, lr_scheduler)
    return Found(
        parameters={learning_rate.name: learning_rate},
        metrics={learning_rate.name: learning_rate.reference},
    )
