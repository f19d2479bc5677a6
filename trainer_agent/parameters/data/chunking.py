"""The arithmetic of micro-batches, updates and epochs. Pure.

An epoch has so many micro-batches; each update takes as many of them as the accumulation says, and
the epoch's last update what is left. transformers synchronises gradients where the micro-batches
used in the epoch are a multiple of the accumulation, or all of them: only there an update may begin
with another accumulation.
"""

from __future__ import annotations

import math
from typing import NamedTuple


class Position(NamedTuple):
    """A place between two updates."""

    epoch: int
    """Epochs completed."""
    consumed: int
    """Micro-batches used in the epoch that runs."""
    length: int | None
    """Micro-batches in this epoch; None: as many as there are, which nobody knows."""

    @property
    def ends_epoch(self) -> bool:
        """Whether nothing of the epoch is left."""
        return self.consumed == self.length

    def normalised(self, next_length: int | None) -> Position:
        """Return the end of an epoch as the beginning of the next, which has so many batches."""
        return Position(self.epoch + 1, 0, next_length) if self.ends_epoch else self

    def rounded(self, accumulation: int) -> Position:
        """Return the nearest place, not after this one, where an update may begin."""
        if self.length is not None and self.consumed >= self.length:
            return self._replace(consumed=self.length)
        return self._replace(consumed=self.consumed // accumulation * accumulation)

    def in_epoch_of(self, length: int | None, accumulation: int) -> Position:
        """Return the place as far into an epoch of another length as this one is into its own."""
        if length == self.length:
            return self.rounded(accumulation)
        moved = self.consumed
        if length is not None and self.length:
            moved = self.consumed * length // self.length
        return Position(self.epoch, moved, length).rounded(accumulation)


def updates_in(length: int, accumulation: int) -> int:
    """Return the number of updates in an epoch; as in transformers at least one."""
    return max(math.ceil(length / accumulation), 1)


def chunk(position: Position, accumulation: int) -> int:
    """Return how many micro-batches the next update takes; zero: the epoch is over."""
    if position.length is None:
        return accumulation
    return max(min(accumulation, position.length - position.consumed), 0)


def opens(position: Position, accumulation: int, generation: int = 1) -> bool:
    """Say whether an update may begin here with this accumulation.

    Args:
        position: Where the run stands.
        accumulation: The accumulation to come.
        generation: Micro-batches that are generated together; a change waits until they are used.
    """
    return position.ends_epoch or (
        position.consumed % accumulation == 0 and position.consumed % generation == 0
    )


def updates_until_open(
    position: Position, current: int, accumulation: int, generation: int = 1
) -> int:
    """Return how many updates run before one may begin with this accumulation.

    At the latest that is at the end of the epoch; where nobody knows that, at the next multiple.
    """
    if opens(position, accumulation, generation):
        return 0
    every = math.lcm(current, accumulation, generation)
    opening = math.ceil((position.consumed + 1) / every) * every
    if position.length is not None:
        opening = min(opening, position.length)
    return math.ceil((opening - position.consumed) / current)


def updates_left(position: Position, epochs: float, accumulation: int) -> int:
    """Return how many updates remain of a run of so many epochs; at least one.

    From the beginning of a run it is what transformers plans.

    Args:
        position: Where the run stands, not at the end of an epoch; its length is known.
        epochs: Epochs in the whole run, in fractions.
        accumulation: Micro-batches of an update from here on.
    """
    assert position.length is not None
    whole = math.ceil((epochs - position.epoch) * updates_in(position.length, accumulation))
    return max(whole - position.consumed // accumulation, 1)


def nearest_multiples(value: int, unit: int) -> list[int]:
    """Return the positive multiples of ``unit`` below and above a value that is none."""
    below = value // unit * unit
    return [multiple for multiple in (below, below + unit) if multiple > 0]
