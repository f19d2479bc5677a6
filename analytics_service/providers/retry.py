"""When a failed call to a provider is made again: pure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from analytics_service.providers.base import ProviderError


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """Exponential backoff with full jitter, a finite number of times.

    Attributes:
        attempts: Most attempts of one call, the first included; 1 never retries.
        initial: Upper bound of the first delay, in seconds.
        maximum: Upper bound of every delay, in seconds. Who asks for a longer wait than that
            with Retry-After is not asked again.
        budget: Most seconds to wait for one call, all delays together.
    """

    attempts: int = 3
    initial: float = 0.5
    maximum: float = 20.0
    budget: float = 60.0

    def __post_init__(self) -> None:
        """Checks the values.

        Raises:
            ValueError: One of them is out of range.
        """
        if self.attempts < 1:
            raise ValueError(f"attempts must be 1 or more, got {self.attempts}")
        if not 0 < self.initial <= self.maximum:
            raise ValueError(
                f"need 0 < initial <= maximum, got initial={self.initial}, maximum={self.maximum}"
            )
        if not self.budget >= 0:
            raise ValueError(f"budget must be 0 seconds or more, got {self.budget}")

    def delay(
        self,
        failures: int,
        error: ProviderError,
        rand: Callable[[], float],
        waited: float = 0.0,
    ) -> float | None:
        """Returns the seconds to wait before the next attempt; None: make none.

        Args:
            failures: Attempts that have failed, at least 1.
            error: What the last one failed with.
            rand: Gives numbers from 0 up to 1, all equally likely.
            waited: Seconds waited for this call before.
        """
        if failures >= self.attempts or not error.is_transient:
            return None
        advised = error.retry_after or 0.0
        if advised > self.maximum:
            return None
        bound = min(self.maximum, self.initial * 2.0 ** min(failures - 1, 30))
        # The jitter comes on top of what was asked for, so that calls which were turned away
        # together do not come back together.
        seconds = min(advised + rand() * bound, max(advised, self.maximum))
        return None if waited + seconds > self.budget else seconds
