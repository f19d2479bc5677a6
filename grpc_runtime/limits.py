"""How much a server takes on: calls per second, of callers and strangers, and open calls."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import grpc

from grpc_runtime.auth import host_of
from grpc_runtime.errors import StatusError
from grpc_runtime.logging import get_logger

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

_RETRY_SECONDS: Final = 5.0
_MOST_BUCKETS: Final = 10_000
_TELL_SECONDS: Final = 10.0

TOO_MANY_STRANGERS: Final = "TOO_MANY_REFUSED_CALLS"
"""Reason of the refusal of calls from where too many came without valid credentials."""

_log = get_logger(__name__)


class _Rate:
    """So many per second of each sender; as many as in a second may come at once."""

    def __init__(
        self, per_second: float, clock: Callable[[], float], *, most_senders: int | None = None
    ) -> None:
        """Describes the rate; beyond so many senders at once, others are refused."""
        self.per_second = per_second
        self._most_senders = most_senders
        self._room = max(1.0, per_second) / per_second
        self._clock = clock
        # When each sender's bucket is full again: all that has to be known of it.
        self._full_at: dict[str, float] = {}

    def take(self, sender: str) -> float:
        """Takes one on; returns 0, or else how many seconds too early it is."""
        now = self._clock()
        wait = self._wait(sender, now)
        if wait:
            return wait
        if len(self._full_at) >= _MOST_BUCKETS and sender not in self._full_at:
            self._full_at = {each: at for each, at in self._full_at.items() if at > now}
            if self._most_senders is not None and len(self._full_at) >= self._most_senders:
                return self._room
        self._full_at[sender] = max(now, self._full_at.get(sender, now)) + 1.0 / self.per_second
        return 0.0

    def wait(self, sender: str) -> float:
        """Returns after how many seconds one more would be taken on; 0: now."""
        return self._wait(sender, self._clock())

    def _wait(self, sender: str, now: float) -> float:
        full_at = max(now, self._full_at.get(sender, now)) + 1.0 / self.per_second
        over = full_at - now - self._room
        return over if over > 1e-9 else 0.0


class Strangers:
    """Counts calls without valid credentials, by the address that they come from.

    Where there are too many, they are refused unlooked at: secrets can not be tried out one after
    the other, nor is the store or the log kept busy. Whoever is known to have good credentials is
    served all the same, as the address may be that of a balancer.

    To be used from one event loop.
    """

    def __init__(self, per_second: float, *, clock: Callable[[], float] = time.monotonic) -> None:
        """Describes the limit.

        Args:
            per_second: Of one address, on average; as many as in a second may come at once.
            clock: Where the time comes from, in seconds.
        """
        self._rate = _Rate(per_second, clock, most_senders=_MOST_BUCKETS)
        self._clock = clock
        self._refused = 0
        self._told_at = float("-inf")

    def refusal(self, peer: str) -> StatusError | None:
        """Returns what a stranger at an address is to be refused with; None: it may show itself."""
        wait = self._rate.wait(host_of(peer))
        return self._too_many(peer, wait) if wait else None

    def failed(self, peer: str) -> StatusError | None:
        """Counts a call that had no valid credentials.

        Returns:
            What it is to be refused with instead of the reason; None: it may be told that.
        """
        wait = self._rate.take(host_of(peer))
        if not wait:
            return None
        self._refused += 1
        if self._clock() - self._told_at >= _TELL_SECONDS:
            _log.warning(
                "calls without valid credentials are refused unlooked at, as there are too many",
                calls=self._refused,
                newest_from=peer,
            )
            self._told_at, self._refused = self._clock(), 0
        return self._too_many(peer, wait)

    def _too_many(self, peer: str, wait: float) -> StatusError:
        rate = f"{self._rate.per_second:g}"
        return StatusError(
            grpc.StatusCode.RESOURCE_EXHAUSTED,
            f"more than {rate} calls per second without valid credentials came from"
            f" {host_of(peer)}, so such calls are not looked at for now; send valid credentials, or"
            " come later",
            reason=TOO_MANY_STRANGERS,
            metadata={"limit": rate},
            retry_delay=wait,
        )


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
        self._rate = _Rate(calls_per_second, clock) if calls_per_second else None
        self._open_limit = open_limit
        self._open: Counter[str] = Counter()
        self._open_in_all = 0

    def enter(self, principal: str, method: str) -> bool:
        """Takes a call on.

        Returns:
            Whether :meth:`leave` is to be called at its end.

        Raises:
            StatusError: RESOURCE_EXHAUSTED; there are too many.
        """
        if self._rate is not None and (wait := self._rate.take(principal)):
            raise _too_many_calls(principal, self._rate.per_second, wait)
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


def _too_many_calls(principal: str, rate: float, wait: float) -> StatusError:
    return StatusError(
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        f"{principal!r} sends more than {rate:g} calls per second, which is all that this server"
        " takes of one caller; send fewer, or the same with one call (a watch instead of many"
        " reads, a batch instead of many updates)",
        reason="TOO_MANY_CALLS",
        metadata={"limit": f"{rate:g}"},
        retry_delay=wait,
    )


def _too_many_open(what: str, limit: int) -> StatusError:
    return StatusError(
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        f"{what}, and that is the limit; end some, or try again later",
        reason="TOO_MANY_OPEN_CALLS",
        metadata={"limit": str(limit)},
        retry_delay=_RETRY_SECONDS,
    )
