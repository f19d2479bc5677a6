"""Spreading what remains of a schedule over another number of steps.

A schedule that transformers builds for a run of T steps is a function of the step. Where the run
turns out shorter or longer, this function is followed more slowly or faster, from where it stands
and at an even pace, so that it ends when the run ends. The learning rate in force does not jump,
and by share of the data the schedule is what it was, warm-up included.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch.optim.lr_scheduler import LambdaLR

from trainer_agent.parameters.schedulers import unwrap_scheduler

Shape = Callable[[Any], float]

_MARK = "__midcourse_stretched__"
# What a schedule of transformers that depends on the length of the run is given it by.
_LENGTHS = frozenset({"num_training_steps", "num_decay_steps"})


@dataclass(frozen=True, slots=True)
class Stretch:
    """Which step of its original plan a schedule follows at a step of the run."""

    at: int = 0
    """The optimizer step, by steps done, from which on this holds."""
    position: float = 0
    """Where the schedule stands there."""
    pace: float = 1.0
    """Steps of the schedule for each step of the run."""

    def __call__(self, step: int) -> float:
        """Return where the schedule stands."""
        return self.position + (step - self.at) * self.pace

    @property
    def nothing(self) -> bool:
        """Whether the schedule is followed as it was planned."""
        return self.pace == 1.0 and self.position == self.at

    def replanned(self, built_for: int, at: int, until: int) -> Stretch:
        """Return what leads from step ``at`` to the end of the schedule at step ``until``.

        Args:
            built_for: Steps that the schedule was built for.
            at: Steps done.
            until: Steps in the whole run, now; more than ``at``.
        """
        position = self(at)
        pace = max(built_for - position, 0) / (until - at)
        if position == at and pace == 1.0:
            return Stretch()
        return Stretch(at, position, pace)

    def to_json(self) -> list[float]:
        """Return it as plain numbers."""
        return [self.at, self.position, self.pace]

    @classmethod
    def from_json(cls, data: Any) -> Stretch:
        """Read what ``to_json`` returned."""
        at, position, pace = data
        return cls(int(at), position, float(pace))


def depends_on_length(scheduler: Any) -> bool:
    """Say whether a schedule is one of transformers' that was built for a length of the run."""
    scheduler = unwrap_scheduler(scheduler)
    if not isinstance(scheduler, LambdaLR):
        return False
    shapes = [original_shape(shape) for shape in scheduler.lr_lambdas]
    return all(
        isinstance(shape, functools.partial)
        and shape.func.__module__ == "transformers.optimization"
        and not _LENGTHS.isdisjoint(shape.keywords)
        for shape in shapes
    )


def original_shape(shape: Any) -> Any:
    """Return a schedule's function without the stretch over it."""
    return getattr(shape, _MARK, shape)


def follow_stretched(scheduler: Any, stretch: Stretch) -> None:
    """Let a ``LambdaLR`` schedule follow its functions at another pace."""
    shapes = unwrap_scheduler(scheduler).lr_lambdas
    for index, shape in enumerate(shapes):
        original = original_shape(shape)
        shapes[index] = original if stretch.nothing else _stretched(original, stretch)


def _stretched(shape: Shape, stretch: Stretch) -> Shape:
    # A function, as LambdaLR saves the attributes of any other callable in the checkpoint.
    def stretched(step: int) -> float:
        return shape(stretch(step))

    setattr(stretched, _MARK, shape)
    return stretched
