"""How much a server takes on: calls per second of each caller, and calls that stay open."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import grpc

from grpc_runtime.errors import StatusError

if TYPE_CHECKING:
    from collections.abc import Collection

_RETRY_SECONDS: Final = 5.0
_MOST_BUCKETS: Final = 10_000


@dataclass(frozen=True, slots=True)
class OpenLimit:
    """How many calls of some methods may be open at once.

    Attributes:
        what: What they are, for people, such as "watches".
        methods: Full names of the methods.
        most: In all.
        most_per_principal: Of one caller.
    """

    what: str
    methods: Collection[str]
    most: int
    most_per_principal: int


class CallLimits:
    """Counts calls; refuses those that are too many.

    To be used from one event loop.
    """

    def __init__(
        self,
        *,
        calls_per_second: float = 0.0,
        open_limit: OpenLimit | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Describes the limits.

        Args:
            calls_per_second: Of one caller, on average; as many as in a second may come at once.
                0: any number. A stream is one call, however many messages it carries.
            open_limit: How many calls may be open at once; None: any number.
            clock: Where the time comes from, in seconds.
        """
        self._rate = calls_per_second
        self._burst = max(1.0, calls_per_second)
        self._open_limit = open_limit
        self._clock = clock
        # When each caller's bucket is full again: all that has to be known of it.
        self._full_at: dict[str, float] = {}
        self._open: Counter[str] = Counter()
        self._open_in_all = 0

    def enter(self, principal: str, method: str) -> bool:
        """Takes a call on.

        Returns:
            Whether :meth:`leave` is to be called at its end.

        Raises:
            StatusError: RESOURCE_EXHAUSTED; there are too many.
        """
        if self._rate:
            self._take(principal)
        limit = self._open_limit
        if limit is None or method not in limit.methods:
            return False
        if self._open_in_all >= limit.most:
            raise _too_many_open(f"this server has {limit.most} {limit.what} open", limit.most)
        if self._open[principal] >= limit.most_per_principal:
            most = limit.most_per_principal
            raise _too_many_open(f"{principal!r} has {most} {limit.what} open", most)
        self._open_in_all += 1
        self._open[principal] += 1
        return True

    def leave(self, principal: str) -> None:
        """Notes that an open call that was counted has ended."""
        self._open_in_all -= 1
        self._open[principal] -= 1
        if not self._open[principal]:
            del self._open[principal]

    def _take(self, principal: str) -> None:
        now = self._clock()
        full_at = max(now, self._full_at.get(principal, now)) + 1.0 / self._rate
        over = full_at - now - self._burst / self._rate
        if over > 1e-9:
            raise StatusError(
                grpc.StatusCode.RESOURCE_EXHAUSTED,
                f"{principal!r} sends more than {self._rate:g} calls per second, which is all that"
                f" this server takes of one caller; send fewer, or the same with one call (a watch"
                " instead of many reads, a batch instead of many updates)",
                reason="TOO_MANY_CALLS",
                metadata={"limit": f"{self._rate:g}"},
                retry_delay=over,
            )
        if len(self._full_at) >= _MOST_BUCKETS:
            self._full_at = {name: at for name, at in self._full_at.items() if at > now}
        self._full_at[principal] = full_at


def _too_many_open(what: str, limit: int) -> StatusError:
    return StatusError(
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        f"{what}, and that is the limit; end some, or try again later",
        reason="TOO_MANY_OPEN_CALLS",
        metadata={"limit": str(limit)},
        retry_delay=_RETRY_SECONDS,
    )
