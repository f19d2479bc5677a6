"""Blocking calls of a service: deadlines, retries, translated errors, pages."""

from __future__ import annotations

import copy
import threading
from typing import TYPE_CHECKING, Any, Protocol, Self, TypeVar

import grpc

from grpc_runtime import paging
from grpc_runtime.client.credentials import Credentials
from grpc_runtime.client.errors import MidcourseError, from_call
from grpc_runtime.client.metadata import Metadata, checked_metadata, trace_context
from grpc_runtime.client.retry import RetryPolicy, Tries
from grpc_runtime.client.target import Target, channel_options, channel_target
from grpc_runtime.errors import MESSAGE_TOO_LARGE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from grpc_runtime.client.call import Call

_Request = TypeVar("_Request")
_Response = TypeVar("_Response")
_Item = TypeVar("_Item")
_Result = TypeVar("_Result")
_Stream = TypeVar("_Stream")
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
    page_size: int


def smaller_page(request: PageRequest, error: MidcourseError) -> bool:
    """Asks for half as much at a time where a page was too large for a message.

    Args:
        request: Of the page that has failed; its token is good for pages of any size.
        error: What it failed with.

    Returns:
        Whether to ask again.
    """
    size = min(request.page_size or paging.DEFAULT_SIZE, paging.MAX_SIZE)
    if error.reason != MESSAGE_TOO_LARGE or size == 1:
        return False
    request.page_size = size // 2
    return True


class BaseTransport:
    """What blocking and asynchronous transports have in common.

    Attributes:
        target: The kind of service that is called.
        address: Where it is.
        timeout: Seconds that a call may take, all its tries together.
        retry: When to try again.
        owns_channel: Whether closing this closes the channel.
        channel: The channel.
    """

    channel: Any

    def __init__(
        self,
        target: Target,
        address: str | None,
        *,
        timeout: float,
        retry: RetryPolicy,
        credentials: Credentials | grpc.ChannelCredentials | None,
    ) -> None:
        """Resolves the address and reads the credentials.

        Args:
            target: The kind of service that is called.
            address: Where it is; None: see the target.
            timeout: Seconds that a call may take, all its tries together.
            retry: When to try again.
            credentials: What to connect with; None: what the environment says. Those of gRPC's
                own kind are for the channel alone, and no token goes along.

        Raises:
            ValueError: The address is none, or the credentials can not be used there.
        """
        self.target = target
        self.address = target.resolve(address)
        self.timeout = timeout
        self.retry = retry
        self.owns_channel = True
        self._metadata: Metadata | None = None
        self._stubs: dict[Callable[[Any], Any], Any] = {}
        self._closed = threading.Event()
        # gRPC crashes where a stub is made of a closed channel.
        self._lock = threading.Lock()
        self.channel_credentials: grpc.ChannelCredentials | None
        if isinstance(credentials, grpc.ChannelCredentials):
            self._credentials, self.channel_credentials = Credentials(), credentials
            self.is_secure = True
            return
        chosen = Credentials.from_environment() if credentials is None else credentials
        chosen.check_for(self.address)
        chosen.metadata()  # so that what is wrong with a token shows at once
        self._credentials = chosen
        self.channel_credentials = chosen.channel_credentials()
        self.is_secure = chosen.is_secure

    @property
    def metadata(self) -> Metadata:
        """What goes along with every call.

        Raises:
            ValueError: The file with the token can not be read any more.
        """
        own = self._credentials.metadata() if self._metadata is None else self._metadata
        return (*own, *trace_context())

    def with_metadata(self, pairs: Iterable[tuple[str, str | bytes]]) -> Self:
        """Returns a transport over the same channel that sends this metadata and no other.

        Closing it leaves the channel open: the transport that it came from owns it.

        Raises:
            ValueError: A key or value is not allowed.
        """
        other = copy.copy(self)
        other._metadata = checked_metadata(pairs)  # noqa: SLF001 - one's own
        other.owns_channel = False
        return other

    def stub(self, service: Callable[[Any], Any]) -> Any:
        """Returns the stub of that class on the channel; there is one of each.

        Raises:
            MidcourseError: The client is closed, and had none.
        """
        with self._lock:
            if service not in self._stubs:
                self.check_open()
                self._stubs[service] = service(self.channel)
            return self._stubs[service]

    def open_stream(
        self,
        service: Callable[[Any], Any],
        method: Callable[[Any], Callable[..., _Stream]],
        request: object,
    ) -> _Stream:
        """Starts a call with a stream of responses, without a deadline.

        Raises:
            MidcourseError: The client is closed.
        """
        metadata = self.metadata
        call = method(self.stub(service))
        self.check_open()
        try:
            return call(request, metadata=metadata)
        except ValueError:  # what gRPC raises where another thread has closed the channel
            self.check_open()
            raise

    def check_open(self) -> None:
        """Makes sure that the channel can be used.

        Raises:
            MidcourseError: The client is closed.
        """
        if self._closed.is_set():
            raise MidcourseError(
                f"this client of the {self.target.name} is closed", code=grpc.StatusCode.CANCELLED
            )

    def translate(self, error: grpc.RpcError) -> MidcourseError:
        """Turns what a call raised into the client's exception."""
        return from_call(
            error, service=self.target.name, address=self.address, secure=self.is_secure
        )

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
        credentials: Credentials | grpc.ChannelCredentials | None,
    ) -> None:
        """Makes the channel; it connects with the first call.

        Raises:
            ValueError: The address is none, or the credentials can not be used there.
        """
        super().__init__(target, address, timeout=timeout, retry=retry, credentials=credentials)
        options = channel_options(self.address)
        target_name = channel_target(self.address, secure=self.is_secure)
        self.channel = (
            grpc.insecure_channel(target_name, options)
            if self.channel_credentials is None
            else grpc.secure_channel(target_name, self.channel_credentials, options)
        )

    def close(self) -> None:
        """Closes the channel, if it is this transport's own; calls under way end with an error."""
        if self.owns_channel:
            with self._lock:
                self._closed.set()
                self.channel.close()

    def run(self, call: Call[_Result]) -> _Result:
        """Makes a call, again if need be.

        Raises:
            MidcourseError: What the last try failed with.
        """
        response = self.call(
            call.method(self.stub(call.service)),
            call.request,
            repeatable=call.repeatable,
            timeout=self.timeout + call.extra_seconds,
        )
        return call.result(response)

    def run_pages(self, call: Call[Sequence[_Item]]) -> Iterator[_Item]:
        """Returns the items of all pages of a listing, each fetched when it is come to."""
        return self.pages(call.method(self.stub(call.service)), call.request, call.result)

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
            self.sleep(delay)

    def call_once(
        self, method: Method[_Request, _Response], request: _Request, timeout: float
    ) -> _Response:
        """Calls a method and does not try again.

        Raises:
            MidcourseError: What it failed with.
        """
        metadata = self.metadata
        self.check_open()
        try:
            return method(request, timeout=timeout, metadata=metadata)
        except grpc.RpcError as error:
            raise self.translate(error) from error
        except ValueError:  # what gRPC raises where another thread has closed the channel
            self.check_open()
            raise

    def sleep(self, seconds: float) -> None:
        """Waits before a next try, no longer than until the client is closed."""
        self._closed.wait(seconds)

    def pages(
        self,
        method: Method[Any, _Response],
        request: PageRequest,
        items: Callable[[_Response], Iterable[_Item]],
    ) -> Iterator[_Item]:
        """Returns the items of all pages of a listing, each fetched when it is come to."""
        while True:
            try:
                page: Any = self.call(method, request)
            except MidcourseError as error:
                if smaller_page(request, error):
                    continue
                raise
            yield from items(page)
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token
