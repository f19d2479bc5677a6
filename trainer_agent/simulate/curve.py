"""A loss that falls as losses do, and answers to the learning rate. Pure, and the same every time.

A power law in the progress made so far. Progress per step is greatest at a rate of ``BEST_RATE``;
from ``CRITICAL_RATE`` on the loss climbs instead, and recovers once the rate is back below it.
"""

from __future__ import annotations

import math
import zlib
from typing import Final

BEST_RATE: Final = 1e-3
"""Learning rate with which the loss falls fastest."""
CRITICAL_RATE: Final = 5e-3
"""Learning rate above which training diverges."""

_FLOOR: Final = 1.2
_HEIGHT: Final = 2.6
_HALF_TIME: Final = 60.0
_EXPONENT: Final = 0.6
_RECOVERY: Final = 0.97
_HIGHEST: Final = 9.0
_NOISE: Final = 0.03


class LossCurve:
    """The loss of one run.

    What it comes to at a step follows from the seed and from the steps at which the rate changed,
    and from nothing else: not from how often it was asked in between.
    """

    def __init__(self, seed: int | str, rate: float, step: int = 0) -> None:
        """Begins at a step with a learning rate."""
        self._seed = seed
        self._step = step
        self._rate = rate
        self._progress = 0.0
        self._excess = 0.0
        self._floor = _FLOOR * self._noise(0, "floor") ** 3

    @property
    def rate(self) -> float:
        """The learning rate in force."""
        return self._rate

    def change(self, step: int, rate: float) -> None:
        """Notes that the steps after ``step`` use another learning rate."""
        self._progress, self._excess = self._state(step)
        self._step, self._rate = step, rate

    def loss(self, step: int) -> float:
        """Returns the loss at a step since the last change."""
        progress, excess = self._state(step)
        return self._floor + _height(progress) * self._noise(step, "loss") + excess

    def gradient_norm(self, step: int) -> float:
        """Returns the norm of the gradients at a step since the last change."""
        _, excess = self._state(step)
        return (0.8 + 2.0 * excess) * self._noise(step, "norm")

    def eval_loss(self, step: int) -> float:
        """Returns what an evaluation after a step comes to: the loss without its noise."""
        progress, excess = self._state(step)
        return self._floor + 0.05 + _height(progress) + excess

    def _state(self, step: int) -> tuple[float, float]:
        steps = step - self._step
        relative = max(0.0, self._rate) / BEST_RATE
        progress = self._progress + steps * relative * math.exp(1.0 - relative)
        over = self._rate / CRITICAL_RATE
        if over > 1.0:
            # In logarithms, as the power of many steps is beyond all numbers.
            growth = math.log(max(self._excess, 0.02)) + steps * math.log1p(0.1 * (over - 1.0))
            return progress, math.exp(min(growth, math.log(_HIGHEST)))
        return progress, self._excess * _RECOVERY**steps

    def _noise(self, step: int, what: str) -> float:
        """Returns a factor around 1, as good as normally distributed."""
        drawn = zlib.crc32(f"{self._seed}/{what}/{step}".encode())
        total = sum(drawn.to_bytes(4, "big"))  # of four evenly distributed numbers up to 255
        return 1.0 + _NOISE * (total - 510) / 147.8


def _height(progress: float) -> float:
    return _HEIGHT * math.pow(1.0 + progress / _HALF_TIME, -_EXPONENT)
