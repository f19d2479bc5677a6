"""When to try again: pure, shared by the synchronous and the asynchronous clients."""

from __future__ import annotations

import random
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from grpc_runtime.client.errors import MidcourseError, ResourceExhaustedError, UnavailableError

if TYPE_CHECKING:
    from collections.abc import Callable


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """Exponential backoff with full jitter.

    Attributes:
        attempts: Most tries of one call, the first included; 1 never retries.
        initial: Upper bound of the first delay, in seconds.
        maximum: Upper bound of every delay, in seconds.
    """

    attempts: int = 4
    initial: float = 0.2
    maximum: float = 2.0

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

    def delay(self, failures: int, error: MidcourseError) -> float | None:
        """Returns the seconds to wait before the next try of a call; None: do not try again.

        Args:
            failures: Tries that have failed, at least 1.
            error: What the last one failed with.
        """
        if failures >= self.attempts or not is_transient(error):
            return None
        return self.backoff(failures, error.retry_delay)

    def backoff(self, failures: int, advised: float | None = None) -> float:
        """Returns a delay in seconds, for a caller that tries without end.

        Args:
            failures: Tries that have failed in a row, at least 1.
            advised: Seconds that the server asked for; the jitter comes on top, so that clients
                that were turned away together do not come back together.
        """
        bound = min(self.maximum, self.initial * 2.0 ** min(failures - 1, 30))
        return (advised or 0.0) + random.uniform(0.0, bound)  # noqa: S311 - jitter, no secret


def is_transient(error: MidcourseError) -> bool:
    """Says whether the same call may succeed a little later."""
    if isinstance(error, ResourceExhaustedError):
        return error.retry_delay is not None  # overload; a message too large stays too large
    return isinstance(error, UnavailableError)


class Tries:
    """The tries of one call within its time."""

    def __init__(
        self,
        policy: RetryPolicy,
        seconds: float,
        *,
        repeatable: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Starts the time.

        Args:
            policy: How often to try, and the delays between.
            seconds: What all tries together may take.
            repeatable: Whether there may be a second try at all.
            clock: Where the time comes from, in seconds.
        """
        self._policy = policy
        self._repeatable = repeatable
        self._clock = clock
        self._end = clock() + seconds
        self._failures = 0

    @property
    def seconds_left(self) -> float:
        """What the next try may take; 0 or more."""
        return max(0.0, self._end - self._clock())

    def delay_after(self, error: MidcourseError) -> float | None:
        """Returns the seconds to wait before the next try; None: raise the error.

        Args:
            error: What the try failed with.
        """
        self._failures += 1
        delay = self._policy.delay(self._failures, error) if self._repeatable else None
        return None if delay is None or delay >= self.seconds_left else delay
