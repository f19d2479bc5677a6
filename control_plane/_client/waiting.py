"""Waiting for what becomes of an update, blocking and asynchronous.

A wait is asked for in rounds, so that a server that went away is noticed and asked again.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from control_plane._client.errors import not_applied, not_settled
from control_plane._client.names import is_settled
from control_plane._client.requests import duration
from grpc_runtime.client.errors import MidcourseError
from grpc_runtime.client.retry import is_transient
from midcourse.control.v1 import control_pb2, update_pb2
from midcourse.control.v1.control_pb2_grpc import ControlPlaneServiceStub

if TYPE_CHECKING:
    from grpc_runtime.client.aio import AsyncTransport
    from grpc_runtime.client.retry import RetryPolicy
    from grpc_runtime.client.transport import Transport

_ROUND_S: Final = 30.0
# How long a wait goes on without reaching the server, which may be restarting.
_PATIENCE_S: Final = 60.0


class Rounds:
    """The rounds of one wait: pure but for the clock."""

    def __init__(
        self,
        name: str,
        timeout: float | None,
        retry: RetryPolicy,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Starts the time.

        Args:
            name: The update.
            timeout: Seconds to wait; None: until it is settled.
            retry: Delays after failures.
            clock: Where the time comes from, in seconds.
        """
        self._name = name
        self._retry = retry
        self._clock = clock
        self._end = None if timeout is None else clock() + timeout
        self._failures = 0
        self._down_since = 0.0

    def next(self) -> tuple[control_pb2.WaitUpdateRequest, float]:
        """Returns the next round's request, and when the server answers it at the latest."""
        left = _ROUND_S if self._end is None else max(0.0, self._end - self._clock())
        seconds = min(left, _ROUND_S)
        return control_pb2.WaitUpdateRequest(name=self._name, timeout=duration(seconds)), seconds

    def delay_after(self, error: MidcourseError) -> float:
        """Returns the seconds until the next round after one that failed.

        Raises:
            MidcourseError: There is none; ``error`` itself.
        """
        now = self._clock()
        self._down_since = self._down_since if self._failures else now
        self._failures += 1
        delay = self._retry.backoff(self._failures, error.retry_delay)
        give_up = self._down_since + _PATIENCE_S
        if self._end is not None:
            give_up = min(give_up, self._end)
        if not is_transient(error) or now + delay > give_up:
            raise error
        return delay

    def is_over(self, update: update_pb2.Update) -> bool:
        """Says whether the wait ends with the answer of a round."""
        self._failures = 0
        return is_settled(update) or (self._end is not None and self._clock() >= self._end)


def wait_update(transport: Transport, name: str, timeout: float | None) -> update_pb2.Update:
    """Returns an update once it is settled, or as it stands after ``timeout`` seconds."""
    rounds = Rounds(name, timeout, transport.retry)
    answer: control_pb2.WaitUpdateResponse
    method = transport.stub(ControlPlaneServiceStub).WaitUpdate
    while True:
        request, seconds = rounds.next()
        try:
            # The server answers at the end of the round; the rest is for the way.
            answer = transport.call_once(method, request, seconds + transport.timeout)
        except MidcourseError as error:
            transport.sleep(rounds.delay_after(error))
        else:
            if rounds.is_over(answer.update):
                return answer.update


async def async_wait_update(
    transport: AsyncTransport, name: str, timeout: float | None
) -> update_pb2.Update:
    """As :func:`wait_update`."""
    rounds = Rounds(name, timeout, transport.retry)
    answer: control_pb2.WaitUpdateResponse
    method: Any = transport.stub(ControlPlaneServiceStub).WaitUpdate
    while True:
        request, seconds = rounds.next()
        try:
            answer = await transport.call_once(method, request, seconds + transport.timeout)
        except MidcourseError as error:
            await asyncio.sleep(rounds.delay_after(error))
        else:
            if rounds.is_over(answer.update):
                return answer.update


def applied(update: update_pb2.Update, timeout: float | None) -> update_pb2.Update:
    """Returns an update that was waited for, if it is in force.

    Raises:
        UpdateNotAppliedError: It was rejected, expired or cancelled.
        UpdateTimeoutError: It is not settled after ``timeout`` seconds.
    """
    if update.state == update_pb2.UPDATE_STATE_APPLIED:
        return update
    if is_settled(update):
        raise not_applied(update)
    assert timeout is not None  # without one, a wait goes on until it is settled
    raise not_settled(update, timeout)
