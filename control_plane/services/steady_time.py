"""What a clock said at a steady second, for what is measured by the one and told by the other."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from control_plane.services.ports import Clock, Steady

# Two looks come out apart by the time between reading the one and the other, and the clock is
# always being corrected a little: what is told of the past is not to change with every look.
_UNNOTICED: Final = timedelta(milliseconds=100)


class SteadyTime:
    """Tells times of steady seconds, which stay the same until somebody sets the clock."""

    def __init__(self, clock: Clock, steady: Steady) -> None:
        """Looks for the first time.

        Args:
            clock: The time.
            steady: Seconds since any moment, by a clock that nobody can set.
        """
        self._clock = clock
        self._steady = steady
        self._zero = self._look()

    def zero(self) -> datetime:
        """The time at which steady seconds were 0, as the clock is set now."""
        zero = self._look()
        if abs(zero - self._zero) > _UNNOTICED:
            self._zero = zero
        return self._zero

    def _look(self) -> datetime:
        return self._clock() - timedelta(seconds=self._steady())
