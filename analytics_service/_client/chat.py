"""A question and its answer as it comes, blocking and asynchronous."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol, Self

import grpc

from analytics_service._client.answer import Answer, Collector
from grpc_runtime.client.errors import MidcourseError

if TYPE_CHECKING:
    from collections.abc import Callable

    from grpc_runtime.client.aio import AsyncTransport
    from grpc_runtime.client.retry import Tries
    from grpc_runtime.client.transport import BaseTransport, Transport
    from midcourse.analytics.v1 import analytics_pb2 as pb
    from midcourse.analytics.v1 import model_pb2, session_pb2, usage_pb2


class _Stream(Protocol):
    """What a blocking chat uses of a gRPC call."""

    def __next__(self) -> pb.ChatResponse: ...

    def cancel(self) -> bool: ...


class _AsyncStream(Protocol):
    """What an asynchronous chat uses of a gRPC call."""

    async def read(self) -> Any: ...

    def cancel(self) -> bool: ...


class BaseChat:
    """What blocking and asynchronous chats have in common: the answer so far.

    The question is sent when the first event is asked for. Until that has come, and within the
    client's ``timeout``, it is sent again while nobody answers: with the same request id, so that
    it is answered and paid for once.
    """

    def __init__(self, transport: BaseTransport, request: pb.ChatRequest, timeout: float) -> None:
        self._request = request
        # Until the answer has begun, waits between tries are those of any other call.
        self._start_tries = partial(transport.tries, timeout=min(timeout, transport.timeout))
        self._tries: Tries | None = None
        self._timeout = timeout
        self._end = 0.0
        self._failure: MidcourseError | None = None
        self._collector = Collector()
        self._ended = False
        self._cancelled = False

    @property
    def request_id(self) -> str:
        """Id of the question: asking again with it gives the same answer, at no further cost."""
        return self._request.request_id

    @property
    def text(self) -> str:
        """The answer's text so far."""
        return self._collector.text

    @property
    def started(self) -> pb.ChatStarted | None:
        """Where the answer goes, and who gives it; None before the first event."""
        return self._collector.started

    @property
    def model(self) -> model_pb2.ModelChoice | None:
        """Which model was asked for, used and served; None before the first event."""
        return self._collector.model

    @property
    def usage(self) -> list[usage_pb2.UsageRecord]:
        """What calls to providers used and cost so far."""
        return list(self._collector.usage)

    @property
    def proposed_updates(self) -> list[session_pb2.ProposedUpdate]:
        """The changes that the model has drafted so far; nobody has submitted them."""
        return list(self._collector.proposed_updates)

    @property
    def message(self) -> session_pb2.Message | None:
        """The answer as it is recorded; None before its end."""
        return self._collector.message

    @property
    def cancelled(self) -> bool:
        """Whether the answer was given up on this side before its end."""
        return self._cancelled

    def _seconds_left(self) -> float:
        """What the answer may still take; the time starts with the first try."""
        if self._tries is None:
            self._tries = self._start_tries()
            self._end = time.monotonic() + self._timeout
        return max(0.0, self._end - time.monotonic())

    def _give_up(self) -> bool:
        """Notes that nobody waits for more; False if there is no more anyway."""
        if self._ended:
            return False
        self._ended = self._cancelled = True
        return True

    def _take(self, event: pb.ChatResponse) -> pb.ChatResponse:
        self._collector.feed(event)
        return event

    def _check_end(self) -> None:
        """Ends a stream that the service ended well.

        Raises:
            UnavailableError: The answer had not come to its end.
        """
        self._ended = True
        self._failure = self._collector.truncation()
        if self._failure is not None:
            raise self._failure

    def _retry_delay(self, error: MidcourseError) -> float:
        """Returns the seconds until the next try.

        Raises:
            MidcourseError: There is none; ``error`` itself.
        """
        assert self._tries is not None
        delay = None if self._collector.begun else self._tries.delay_after(error)
        if delay is None:
            self._ended = True
            self._failure = error
            raise error
        return delay

    def _answer(self) -> Answer:
        """Returns the answer of a chat that is over.

        Raises:
            MidcourseError: It was given up, or failed.
        """
        if self._collector.message is not None:
            return self._collector.answer()
        if self._failure is not None:
            raise self._failure
        where = f"; {self.started.message} has what there is of it" if self.started else ""
        raise MidcourseError(
            f"the answer was given up before its end{where}", code=grpc.StatusCode.CANCELLED
        )


class Chat(BaseChat, Iterator["pb.ChatResponse"]):
    """An answer as it comes: iterate over its events.

    Iterating ends with the answer, or after :meth:`cancel`. Leaving the ``with`` block before the
    end cancels the answer too; what there is of it is kept in the session.
    """

    def __init__(
        self,
        transport: Transport,
        open_stream: Callable[..., _Stream],
        request: pb.ChatRequest,
        timeout: float,
    ) -> None:
        """Prepares the question; see :meth:`Client.chat`.

        Args:
            transport: Whose metadata and policy apply.
            open_stream: Starts the call.
            request: The question, with a request id.
            timeout: Seconds that the answer may take.
        """
        super().__init__(transport, request, timeout)
        self._transport = transport
        self._open_stream = open_stream
        self._stream: _Stream | None = None
        self._given_up = threading.Event()

    def __next__(self) -> pb.ChatResponse:
        """Returns the next event.

        Raises:
            MidcourseError: The question was refused, or the answer failed.
        """
        while not self._ended:
            try:
                if self._stream is None:
                    self._stream = self._open_stream(
                        self._request,
                        timeout=self._seconds_left(),
                        metadata=self._transport.metadata,
                    )
                    if self._cancelled:  # by another thread, which did not see the stream
                        self._stream.cancel()
                return self._take(next(self._stream))
            except StopIteration:
                self._check_end()
            except grpc.RpcError as error:
                if self._cancelled:
                    break
                self._stream = None
                delay = self._retry_delay(self._transport.translate(error))
                self._given_up.wait(delay)
        raise StopIteration

    def cancel(self) -> None:
        """Stops the answer; from any thread. A blocked iteration ends."""
        if self._give_up():
            self._given_up.set()
            if (stream := self._stream) is not None:
                stream.cancel()

    def result(self) -> Answer:
        """Waits for the end of the answer and returns it.

        Raises:
            MidcourseError: The question was refused, or the answer failed or was given up.
        """
        for _ in self:
            pass
        return self._answer()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.cancel()


class AsyncChat(BaseChat, AsyncIterator["pb.ChatResponse"]):
    """An answer as it comes: iterate over its events with ``async for``.

    Iterating ends with the answer, or after :meth:`cancel`. Leaving the ``async with`` block
    before the end cancels the answer too; what there is of it is kept in the session.
    """

    def __init__(
        self,
        transport: AsyncTransport,
        open_stream: Callable[..., _AsyncStream],
        request: pb.ChatRequest,
        timeout: float,
    ) -> None:
        """Prepares the question; see :meth:`AsyncClient.chat`.

        Args:
            transport: Whose metadata and policy apply.
            open_stream: Starts the call.
            request: The question, with a request id.
            timeout: Seconds that the answer may take.
        """
        super().__init__(transport, request, timeout)
        self._transport = transport
        self._open_stream = open_stream
        self._stream: _AsyncStream | None = None
        self._given_up = asyncio.Event()

    async def __anext__(self) -> pb.ChatResponse:
        """Returns the next event.

        Raises:
            MidcourseError: The question was refused, or the answer failed.
        """
        while not self._ended:
            if self._stream is None:
                self._stream = self._open_stream(
                    self._request,
                    timeout=self._seconds_left(),
                    metadata=self._transport.metadata,
                )
            try:
                event = await self._transport.result(self._stream.read())
            except MidcourseError as error:
                if self._cancelled:
                    break
                self._stream = None
                await self._wait(self._retry_delay(error))
                continue
            except asyncio.CancelledError:
                self.cancel()
                raise
            if event is not grpc.aio.EOF:
                return self._take(event)
            self._check_end()
        raise StopAsyncIteration

    def cancel(self) -> None:
        """Stops the answer; from any task of the loop. A blocked iteration ends."""
        if self._give_up():
            self._given_up.set()
            if self._stream is not None:
                self._stream.cancel()

    async def result(self) -> Answer:
        """Waits for the end of the answer and returns it.

        Raises:
            MidcourseError: The question was refused, or the answer failed or was given up.
        """
        async for _ in self:
            pass
        return self._answer()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.cancel()

    async def _wait(self, seconds: float) -> None:
        """Waits until the time is over or the answer is given up."""
        try:
            async with asyncio.timeout(seconds):
                await self._given_up.wait()
        except TimeoutError:
            return
