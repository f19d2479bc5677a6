"""Asynchronous calls of a service: deadlines, retries, translated errors, pages."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, TypeVar

import grpc

from grpc_runtime.client.errors import MidcourseError
from grpc_runtime.client.target import Target, channel_options, channel_target
from grpc_runtime.client.transport import BaseTransport, Method, PageRequest, smaller_page

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence

    from grpc_runtime.client.call import Call
    from grpc_runtime.client.credentials import Credentials
    from grpc_runtime.client.retry import RetryPolicy

_Request = TypeVar("_Request")
_Response = TypeVar("_Response")
_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


class AsyncTransport(BaseTransport):
    """A ``grpc.aio`` channel to a service; belongs to the event loop that it was made in.

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
            RuntimeError: No event loop is running.
        """
        super().__init__(target, address, timeout=timeout, retry=retry, credentials=credentials)
        asyncio.get_running_loop()  # grpc.aio would take another one and hang
        options = channel_options(self.address)
        target_name = channel_target(self.address, secure=self.is_secure)
        self.channel = (
            grpc.aio.insecure_channel(target_name, options)
            if self.channel_credentials is None
            else grpc.aio.secure_channel(target_name, self.channel_credentials, options)
        )

    async def close(self) -> None:
        """Closes the channel, if it is this transport's own; calls under way end with an error."""
        if self.owns_channel:
            self._closed.set()
            await self.channel.close()

    async def run(self, call: Call[_Result]) -> _Result:
        """Makes a call, again if need be.

        Raises:
            MidcourseError: What the last try failed with.
        """
        response: Any = await self.call(
            call.method(self.stub(call.service)),
            call.request,
            repeatable=call.repeatable,
            timeout=self.timeout + call.extra_seconds,
        )
        return call.result(response)

    def run_pages(self, call: Call[Sequence[_Item]]) -> AsyncIterator[_Item]:
        """Yields the items of all pages of a listing, each fetched when it is come to."""
        return self.pages(call.method(self.stub(call.service)), call.request, call.result)

    async def call(
        self,
        method: Method[_Request, Awaitable[_Response]],
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
                return await self.call_once(method, request, tries.seconds_left)
            except MidcourseError as error:
                if (delay := tries.delay_after(error)) is None:
                    raise
            await asyncio.sleep(delay)

    async def call_once(
        self, method: Method[_Request, Awaitable[_Response]], request: _Request, timeout: float
    ) -> _Response:
        """Calls a method and does not try again.

        Raises:
            MidcourseError: What it failed with.
        """
        metadata = self.metadata
        self.check_open()
        return await self.result(method(request, timeout=timeout, metadata=metadata))

    async def pages(
        self,
        method: Method[Any, Awaitable[_Response]],
        request: PageRequest,
        items: Callable[[_Response], Iterable[_Item]],
    ) -> AsyncIterator[_Item]:
        """Yields the items of all pages of a listing, each fetched when it is come to."""
        while True:
            try:
                page: Any = await self.call(method, request)
            except MidcourseError as error:
                if smaller_page(request, error):
                    continue
                raise
            for item in items(page):
                yield item
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token

    async def result(self, answer: Awaitable[_Response]) -> _Response:
        """Waits for a call's response, or for the next of a stream.

        Raises:
            MidcourseError: What the call failed with.
            asyncio.CancelledError: The waiting task was cancelled, and the call with it.
        """
        try:
            return await answer
        except grpc.RpcError as error:
            raise self.translate(error) from error
        except asyncio.CancelledError as error:
            # grpc.aio raises this too where the call was cancelled and not the task that waits:
            # that task would end without a word, as if somebody had wanted it to.
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            raise MidcourseError(
                f"the call of the {self.target.name} was cancelled on this side",
                code=grpc.StatusCode.CANCELLED,
            ) from error
