"""How long to wait before trying again, so that many agents do not come back at once."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Final

BASE_SECONDS: Final = 0.1
"""Bound of the first wait."""
CAP_SECONDS: Final = 3.0
"""Bound of the longest wait."""

LONGEST_ADVICE_SECONDS: Final = 300.0
"""Advice to wait for longer is taken as advice to wait so long: a server may be mistaken."""

_ADVICE_SPREAD: Final = 0.5


class FullJitter:
    """Exponential back-off with full jitter: any time from 0 to a bound that doubles."""

    def __init__(
        self,
        *,
        base: float = BASE_SECONDS,
        cap: float = CAP_SECONDS,
        uniform: Callable[[float, float], float] = random.uniform,
    ) -> None:
        """Begins with waits up to ``base`` seconds, which grow to at most ``cap``."""
        self._base = base
        self._cap = cap
        self._uniform = uniform
        self._attempt = 0

    def reset(self) -> None:
        """Notes that an attempt did well: the next wait is short again."""
        self._attempt = 0

    def next_delay(self, advised: float | None = None) -> float:
        """Returns how long to wait, in seconds.

        Args:
            advised: What the other side asked for, in seconds; None: nothing. The wait is then
                never shorter than that, or than ``LONGEST_ADVICE_SECONDS`` where it asked for
                more, and up to half as long again, as others were told the same.
        """
        bound = min(self._cap, self._base * 2.0 ** min(self._attempt, 64))
        self._attempt += 1
        delay = self._uniform(0.0, bound)
        if advised is None:
            return delay
        advised = min(advised, LONGEST_ADVICE_SECONDS)
        return max(delay, self._uniform(advised, advised * (1 + _ADVICE_SPREAD)))
