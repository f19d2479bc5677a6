"""Blocking calls of a service: deadlines, retries, translated errors, pages."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol, Self, TypeVar

import grpc

from grpc_runtime.client.errors import MidcourseError, from_call
from grpc_runtime.client.metadata import Metadata, checked_metadata
from grpc_runtime.client.retry import RetryPolicy, Tries
from grpc_runtime.client.target import Target, channel_options

_Request = TypeVar("_Request")
_Response = TypeVar("_Response")
_Item = TypeVar("_Item")
_Request_contra = TypeVar("_Request_contra", contravariant=True)
_Response_co = TypeVar("_Response_co", covariant=True)


class Method(Protocol[_Request_contra, _Response_co]):
    """A call of a stub with one request."""

    def __call__(
        self,
        request: _Request_contra,
        /,
        *,
        timeout: float | None = None,
        metadata: Metadata | None = None,
    ) -> _Response_co:
        """Calls the server."""


class PageRequest(Protocol):
    """A request of a listing."""

    page_token: str


class BaseTransport:
    """What blocking and asynchronous transports have in common.

    Attributes:
        target: The kind of service that is called.
        address: Where it is.
        timeout: Seconds that a call may take, all its tries together.
        retry: When to try again.
        metadata: What goes along with every call.
        owns_channel: Whether closing this closes the channel.
    """

    def __init__(
        self, target: Target, address: str | None, *, timeout: float, retry: RetryPolicy
    ) -> None:
        """Resolves the address.

        Raises:
            ValueError: The address is none.
        """
        self.target = target
        self.address = target.resolve(address)
        self.timeout = timeout
        self.retry = retry
        self.metadata: Metadata = ()
        self.owns_channel = True

    def with_metadata(self, pairs: Iterable[tuple[str, str | bytes]]) -> Self:
        """Returns a transport over the same channel that sends this metadata and no other.

        Closing it leaves the channel open: the transport that it came from owns it.

        Raises:
            ValueError: A key or value is not allowed.
        """
        other = copy.copy(self)
        other.metadata = checked_metadata(pairs)
        other.owns_channel = False
        return other

    def translate(self, error: grpc.RpcError) -> MidcourseError:
        """Turns what a call raised into the client's exception."""
        return from_call(error, service=self.target.name, address=self.address)

    def tries(self, *, repeatable: bool = True, timeout: float | None = None) -> Tries:
        """Starts the time of a call.

        Args:
            repeatable: Calling twice does no more than calling once.
            timeout: Seconds that it may take, all tries together; by default the client's.
        """
        seconds = self.timeout if timeout is None else timeout
        return Tries(self.retry, seconds, repeatable=repeatable)


class Transport(BaseTransport):
    """A channel to a service; safe to share between threads.

    Attributes:
        channel: The channel, for making stubs.
    """

    def __init__(
        self,
        target: Target,
        address: str | None,
        *,
        timeout: float,
        retry: RetryPolicy,
        credentials: grpc.ChannelCredentials | None,
    ) -> None:
        """Makes the channel; it connects with the first call.

        Raises:
            ValueError: The address is none.
        """
        super().__init__(target, address, timeout=timeout, retry=retry)
        options = channel_options(self.address)
        self.channel = (
            grpc.insecure_channel(self.address, options)
            if credentials is None
            else grpc.secure_channel(self.address, credentials, options)
        )

    def close(self) -> None:
        """Closes the channel, if it is this transport's own; calls under way end with an error."""
        if self.owns_channel:
            self.channel.close()

    def call(
        self,
        method: Method[_Request, _Response],
        request: _Request,
        *,
        repeatable: bool = True,
        timeout: float | None = None,
    ) -> _Response:
        """Calls a method, again if need be.

        Args:
            method: Of a stub on the channel.
            request: What to send.
            repeatable: Calling twice does no more than calling once.
            timeout: Seconds that it may take, all tries together; by default the client's.

        Raises:
            MidcourseError: What the last try failed with.
        """
        tries = self.tries(repeatable=repeatable, timeout=timeout)
        while True:
            try:
                return self.call_once(method, request, tries.seconds_left)
            except MidcourseError as error:
                if (delay := tries.delay_after(error)) is None:
                    raise
            time.sleep(delay)

    def call_once(
        self, method: Method[_Request, _Response], request: _Request, timeout: float
    ) -> _Response:
        """Calls a method and does not try again.

        Raises:
            MidcourseError: What it failed with.
        """
        try:
            return method(request, timeout=timeout, metadata=self.metadata)
        except grpc.RpcError as error:
            raise self.translate(error) from error

    def pages(
        self,
        method: Method[Any, _Response],
        request: PageRequest,
        items: Callable[[_Response], Iterable[_Item]],
    ) -> Iterator[_Item]:
        """Returns the items of all pages of a listing, each fetched when it is come to."""
        while True:
            page: Any = self.call(method, request)
            yield from items(page)
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token
