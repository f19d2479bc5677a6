"""Finds what can be changed live in a training run, and what every step can tell for free.

Each family of parameters is a module with a function that looks at a run and returns what the
family has for it. A parameter that can not be changed in this run is among them: its declaration
says why.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from trainer_agent.parameters import (
    cadence,
    clipping,
    data,
    dropout,
    generation,
    optimizer,
    preference,
    warmup,
)
from trainer_agent.parameters.learning_rate import LearningRate

if TYPE_CHECKING:
    from trainer_agent.parameters import LiveParameter
    from trainer_agent.run import Run


@dataclass(frozen=True, slots=True)
class Found:
    """What there is in a run."""

    parameters: dict[str, LiveParameter]
    """Live parameters by name."""
    metrics: dict[str, Callable[[], float | None]]
    """Values that every step reports as metrics, by name, as they lie on the host; None: one does
    not lie there."""


Family = Callable[["Run"], Iterable["LiveParameter"]]

FAMILIES: tuple[Family, ...] = (
    optimizer.find,
    clipping.find,
    warmup.find,  # before data: what stretches a schedule stretches the one that was re-planned
    cadence.find,
    dropout.find,
    data.find,
    preference.find,
    generation.find,
)
"""Every family but the learning rate, in the order in which a checkpoint's state is loaded."""


def find(run: Run, own: Iterable[LiveParameter] = ()) -> Found:
    """Look at a run.

    Args:
        run: What it shows.
        own: Parameters that its script declares by itself.

    Raises:
        ValueError: The script declares a parameter whose name is taken.
    """
    learning_rate = LearningRate(run.optimizer, run.lr_scheduler)
    parameters: dict[str, LiveParameter] = {learning_rate.name: learning_rate}
    run = replace(run, learning_rate=learning_rate)
    for family in FAMILIES:
        parameters.update((each.name, each) for each in family(run))
    for each in own:
        if each.name in parameters:
            raise ValueError(
                f"this run has a live parameter {each.name} already; give yours another name"
            )
        parameters[each.name] = each
    return Found(
        parameters=parameters,
        metrics={learning_rate.name: learning_rate.reference},
    )
