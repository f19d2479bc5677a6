"""The one place that calls the server: deadlines, retries, translated errors."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final, Protocol, TypeVar

import grpc

from control_plane._client.address import channel_options, resolve_address
from control_plane._client.errors import MidcourseError, from_call
from control_plane._client.names import is_settled
from control_plane._client.requests import duration
from control_plane._client.retry import RetryPolicy, is_transient
from midcourse.control.v1 import control_pb2, update_pb2
from midcourse.control.v1.control_pb2_grpc import ControlPlaneServiceStub

# A wait is asked for in rounds, so that a server that went away is noticed and asked again.
_WAIT_ROUND_S: Final = 30.0
# How long a wait goes on without reaching the server, which may be restarting.
_WAIT_PATIENCE_S: Final = 60.0

_Request = TypeVar("_Request")
_Response = TypeVar("_Response")
_Item = TypeVar("_Item")
_Request_contra = TypeVar("_Request_contra", contravariant=True)
_Response_co = TypeVar("_Response_co", covariant=True)


class UnaryMethod(Protocol[_Request_contra, _Response_co]):
    """A unary call of a stub."""

    def __call__(
        self, request: _Request_contra, /, *, timeout: float | None = None
    ) -> _Response_co:
        """Calls the server."""


class Transport:
    """A channel to a control plane; safe to share between threads.

    Attributes:
        address: Where the control plane is.
        stub: Its methods.
        timeout: Seconds that a call may take, all its tries together.
        retry: When to try again.
    """

    def __init__(
        self,
        address: str | None,
        *,
        timeout: float,
        retry: RetryPolicy,
        credentials: grpc.ChannelCredentials | None,
    ) -> None:
        self.address = resolve_address(address)
        self.timeout = timeout
        self.retry = retry
        options = channel_options(self.address)
        self._channel = (
            grpc.insecure_channel(self.address, options)
            if credentials is None
            else grpc.secure_channel(self.address, credentials, options)
        )
        self.stub = ControlPlaneServiceStub(self._channel)

    def close(self) -> None:
        """Closes the channel; calls under way end with an error."""
        self._channel.close()

    def translate(self, error: grpc.RpcError) -> MidcourseError:
        """Turns what a call raised into the client's exception."""
        return from_call(error, address=self.address)

    def call(
        self,
        method: UnaryMethod[_Request, _Response],
        request: _Request,
        *,
        repeatable: bool = True,
        timeout: float | None = None,
    ) -> _Response:
        """Calls a method, again if need be.

        Args:
            method: Of the stub.
            request: What to send.
            repeatable: Calling twice does no more than calling once.
            timeout: Seconds that it may take, all tries together; by default the client's.
        """
        end = time.monotonic() + (self.timeout if timeout is None else timeout)
        failures = 0
        while True:
            try:
                return self._call_once(method, request, max(0.0, end - time.monotonic()))
            except MidcourseError as error:
                failures += 1
                delay = self.retry.delay(failures, error) if repeatable else None
                if delay is None or time.monotonic() + delay >= end:
                    raise
            time.sleep(delay)

    def pages(
        self,
        method: UnaryMethod[Any, _Response],
        request: control_pb2.ListJobsRequest | control_pb2.ListUpdatesRequest,
        items: Callable[[_Response], Iterable[_Item]],
    ) -> Iterator[_Item]:
        """Returns the items of all pages of a listing, each fetched when it is come to."""
        while True:
            page: Any = self.call(method, request)
            yield from items(page)
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token

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
                update = self._call_once(self.stub.WaitUpdate, request, deadline).update
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

    def _call_once(
        self, method: UnaryMethod[_Request, _Response], request: _Request, timeout: float
    ) -> _Response:
        try:
            return method(request, timeout=timeout)
        except grpc.RpcError as error:
            raise self.translate(error) from error
