"""The one place that calls the control plane."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

from control_plane._client.names import is_settled
from control_plane._client.requests import duration
from control_plane._client.target import CONTROL_PLANE
from grpc_runtime.client.errors import MidcourseError
from grpc_runtime.client.retry import is_transient
from grpc_runtime.client.transport import Transport
from midcourse.control.v1 import control_pb2, update_pb2
from midcourse.control.v1.control_pb2_grpc import ControlPlaneServiceStub

if TYPE_CHECKING:
    import grpc

    from grpc_runtime.client.retry import RetryPolicy

# A wait is asked for in rounds, so that a server that went away is noticed and asked again.
_WAIT_ROUND_S: Final = 30.0
# How long a wait goes on without reaching the server, which may be restarting.
_WAIT_PATIENCE_S: Final = 60.0


class ControlPlaneTransport(Transport):
    """A channel to a control plane; safe to share between threads.

    Attributes:
        stub: Its methods.
    """

    def __init__(
        self,
        address: str | None,
        *,
        timeout: float,
        retry: RetryPolicy,
        credentials: grpc.ChannelCredentials | None,
    ) -> None:
        super().__init__(
            CONTROL_PLANE, address, timeout=timeout, retry=retry, credentials=credentials
        )
        self.stub = ControlPlaneServiceStub(self.channel)

    def wait_update(self, name: str, timeout: float | None) -> update_pb2.Update:
        """Returns an update once it is settled, or as it stands after ``timeout`` seconds."""
        end = None if timeout is None else time.monotonic() + timeout
        failures, down_since = 0, 0.0
        while True:
            left = _WAIT_ROUND_S if end is None else max(0.0, end - time.monotonic())
            round_s = min(left, _WAIT_ROUND_S)
            request = control_pb2.WaitUpdateRequest(name=name, timeout=duration(round_s))
            try:
                # The server answers at the end of the round; the rest is for the way.
                deadline = round_s + self.timeout
                update = self.call_once(self.stub.WaitUpdate, request, deadline).update
            except MidcourseError as error:
                now = time.monotonic()
                down_since = down_since if failures else now
                failures += 1
                delay = self.retry.backoff(failures, error.retry_delay)
                give_up = down_since + _WAIT_PATIENCE_S
                if end is not None:
                    give_up = min(give_up, end)
                if not is_transient(error) or now + delay > give_up:
                    raise
                time.sleep(delay)
            else:
                failures = 0
                if is_settled(update) or (end is not None and time.monotonic() >= end):
                    return update
