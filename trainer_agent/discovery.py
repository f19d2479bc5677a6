"""Finds what can be changed live in a training run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from trainer_agent.parameters.learning_rate import LearningRate

if TYPE_CHECKING:
    from trainer_agent.parameters import LiveParameter


def live_parameters(optimizer: Any, lr_scheduler: Any) -> dict[str, LiveParameter]:
    """Return the live parameters of a run, by name.

    A parameter that can not be changed in this run is part of it: its declaration says why.

    Args:
        optimizer: The optimizer, wrapped or not.
        lr_scheduler: Its scheduler, wrapped or not; None: the learning rate is constant.
    """
    parameters: list[LiveParameter] = [LearningRate(optimizer, lr_scheduler)]
    return {parameter.name: parameter for parameter in parameters}
