"""Watching jobs and batches across lost connections, blocking and asynchronous."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any, Generic, Protocol, Self, TypeVar

import grpc

from control_plane._client.cursor import BatchCursor, Cursor, WatchCursor
from grpc_runtime.client.errors import MidcourseError, UnavailableError
from grpc_runtime.client.retry import is_transient
from midcourse.control.v1 import control_pb2
from midcourse.control.v1.control_pb2_grpc import ControlPlaneServiceStub

if TYPE_CHECKING:
    from grpc_runtime.client.aio import AsyncTransport
    from grpc_runtime.client.transport import BaseTransport, Transport

_Request = TypeVar("_Request")
_Response = TypeVar("_Response")

_Method = Callable[[ControlPlaneServiceStub], Callable[..., Any]]


class _Stream(Protocol):
    """What a blocking watch uses of a gRPC call."""

    def __next__(self) -> Any: ...

    def cancel(self) -> bool: ...


class _AsyncStream(Protocol):
    """What an asynchronous watch uses of a gRPC call."""

    async def read(self) -> Any: ...

    def cancel(self) -> bool: ...


class _BaseWatch(Generic[_Request, _Response]):
    """What blocking and asynchronous watches have in common: where they are, and when to retry.

    Nothing is sent before the first event is asked for.

    Attributes:
        on_interruption: Called each time a stream was there and is lost, with the reason, before
            it is tried again; it may not block.
    """

    def __init__(
        self,
        transport: BaseTransport,
        method: _Method,
        cursor: Cursor[_Request, _Response],
        patience: float | None,
    ) -> None:
        """Prepares a watch.

        Args:
            transport: Whose channel, metadata and policy of retries are used; before the first
                success it is tried as often as a call is.
            method: What to call.
            cursor: What to watch, and from where on.
            patience: Seconds without a connection, after the first success, until the error is
                raised; None: try for ever.
        """
        self._open_stream = partial(transport.open_stream, ControlPlaneServiceStub, method)
        self._policy = transport.retry
        self._cursor = cursor
        self._patience = patience
        self._ready: deque[_Response] = deque()
        self._connected_once = False
        self._failures = 0
        self._down_since = 0.0
        self._interruption: MidcourseError | None = None
        self.on_interruption: Callable[[MidcourseError], None] | None = None

    @property
    def interruption(self) -> MidcourseError | None:
        """Why there is no stream at the moment; None while there is one."""
        return self._interruption

    def _take(self, event: _Response) -> None:
        """Takes an event from the stream."""
        self._connected_once = True
        self._failures = 0
        self._interruption = None
        self._ready.extend(self._cursor.feed(event))

    def _delay_after(self, error: MidcourseError) -> float:
        """Returns the seconds until the next try.

        Raises:
            MidcourseError: There is none; ``error`` itself.
        """
        if not is_transient(error):
            raise error
        self._failures += 1
        now = time.monotonic()
        is_new = self._interruption is None
        if is_new:
            self._down_since = now
        self._interruption = error
        delay = self._policy.backoff(self._failures, error.retry_delay)
        if not self._connected_once:
            if self._failures >= self._policy.attempts:
                raise error
        elif self._patience is not None and now + delay - self._down_since > self._patience:
            raise error
        elif is_new and self.on_interruption is not None:
            self.on_interruption(error)
        return delay


class Watch(_BaseWatch[_Request, _Response], Iterator[_Response]):
    """The events of a watch, through reconnects.

    Iterating blocks until the next event. It ends when :meth:`close` is called, from any thread,
    or when nothing can follow.
    """

    def __init__(
        self,
        transport: Transport,
        method: _Method,
        cursor: Cursor[_Request, _Response],
        patience: float | None,
    ) -> None:
        super().__init__(transport, method, cursor, patience)
        self._translate = transport.translate
        self._stream: _Stream | None = None
        self._closed = threading.Event()

    def __next__(self) -> _Response:
        """Returns the next event.

        Raises:
            OutOfRangeError: The position is gone; watch anew from a snapshot.
            UnavailableError: Nobody answered, for longer than the watch's patience.
            MidcourseError: The server refused the watch for another reason, or the client was
                closed.
        """
        while not self._ready:
            if self._closed.is_set():
                raise StopIteration
            self._receive()
        event = self._ready.popleft()
        if self._cursor.hand_out(event):
            self.close()
        return event

    def close(self) -> None:
        """Ends the watch; a blocked iteration ends too."""
        self._closed.set()
        if (stream := self._stream) is not None:
            stream.cancel()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _receive(self) -> None:
        """Takes one event from the stream, or waits for the time of the next try."""
        try:
            if self._stream is None:
                self._stream = self._open_stream(self._cursor.next_request())
                if self._closed.is_set():  # by another thread, which did not see the stream
                    self._stream.cancel()
            event = next(self._stream)
        except StopIteration:
            self._stream = None
            if self._cursor.ends:
                self._closed.set()
            else:
                self._closed.wait(self._delay_after(_ended()))
        except grpc.RpcError as error:
            self._stream = None
            if not self._closed.is_set():
                self._closed.wait(self._delay_after(self._translate(error)))
        else:
            self._take(event)


class AsyncWatch(_BaseWatch[_Request, _Response], AsyncIterator[_Response]):
    """The events of a watch, through reconnects, for ``async for``.

    It ends when :meth:`aclose` is called, from any task of the loop, or when nothing can follow.
    A wait for an event that is cancelled loses none: the next one goes on from there. One that is
    dropped, as by a ``break`` out of the loop, ends as well.
    """

    def __init__(
        self,
        transport: AsyncTransport,
        method: _Method,
        cursor: Cursor[_Request, _Response],
        patience: float | None,
    ) -> None:
        super().__init__(transport, method, cursor, patience)
        self._result = transport.result
        self._loop = asyncio.get_running_loop()
        self._stream: _AsyncStream | None = None
        self._closed = asyncio.Event()

    def __del__(self) -> None:
        # gRPC goes on with a call that nobody holds any more, and the server with it. What is
        # collected may be collected on any thread, and after the loop has ended.
        stream = getattr(self, "_stream", None)  # there is none where __init__ has failed
        if stream is not None and not self._loop.is_closed():
            with contextlib.suppress(RuntimeError):  # it has been closed just now
                self._loop.call_soon_threadsafe(stream.cancel)

    async def __anext__(self) -> _Response:
        """Returns the next event; see :meth:`Watch.__next__` for what is raised."""
        while not self._ready:
            if self._closed.is_set():
                raise StopAsyncIteration
            await self._receive()
        event = self._ready.popleft()
        if self._cursor.hand_out(event):
            self._end()
        return event

    async def aclose(self) -> None:
        """Ends the watch; an iteration that waits ends too."""
        self._end()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self._end()

    def _end(self) -> None:
        self._closed.set()
        if self._stream is not None:
            self._stream.cancel()

    async def _receive(self) -> None:
        """Takes one event from the stream, or waits for the time of the next try."""
        if self._stream is None:
            self._stream = self._open_stream(self._cursor.next_request())
        try:
            event = await self._result(self._stream.read())
        except MidcourseError as error:
            self._stream = None
            if not self._closed.is_set():
                await self._wait(self._delay_after(error))
        except asyncio.CancelledError:
            # The call is cancelled with the task that waits. What it may have brought meanwhile
            # was not taken, so that the next stream brings it again.
            self._stream = None
            raise
        else:
            if event is not grpc.aio.EOF:
                self._take(event)
                return
            self._stream = None
            if self._cursor.ends:
                self._closed.set()
            else:
                await self._wait(self._delay_after(_ended()))

    async def _wait(self, seconds: float) -> None:
        """Waits until the time is over or the watch is closed."""
        try:
            async with asyncio.timeout(seconds):
                await self._closed.wait()
        except TimeoutError:
            return


class JobWatch(Watch[control_pb2.WatchJobsRequest, control_pb2.WatchJobsResponse]):
    """The events of a watch of jobs, in order, without gaps or duplicates, through reconnects.

    It ends by itself when the one job watched is deleted.
    """

    def __init__(
        self,
        transport: Transport,
        request: control_pb2.WatchJobsRequest,
        *,
        patience: float | None = None,
    ) -> None:
        """Prepares a watch; see :meth:`Client.watch_jobs`."""
        self._jobs = WatchCursor(request)
        super().__init__(transport, lambda stub: stub.WatchJobs, self._jobs, patience)

    @property
    def position(self) -> str:
        """Where a later watch can go on after what was handed out; empty: at a snapshot."""
        return self._jobs.seen


class AsyncJobWatch(AsyncWatch[control_pb2.WatchJobsRequest, control_pb2.WatchJobsResponse]):
    """As :class:`JobWatch`, for ``async for``."""

    def __init__(
        self,
        transport: AsyncTransport,
        request: control_pb2.WatchJobsRequest,
        *,
        patience: float | None = None,
    ) -> None:
        """Prepares a watch; see :meth:`Client.watch_jobs`."""
        self._jobs = WatchCursor(request)
        super().__init__(transport, lambda stub: stub.WatchJobs, self._jobs, patience)

    @property
    def position(self) -> str:
        """As :attr:`JobWatch.position`."""
        return self._jobs.seen


class BatchWatch(Watch[control_pb2.WatchBatchRequest, control_pb2.WatchBatchResponse]):
    """How a batch goes on: all its items, then those that change, through reconnects.

    It ends by itself once all its updates are settled. After a reconnect all items come again.
    """

    def __init__(
        self,
        transport: Transport,
        request: control_pb2.WatchBatchRequest,
        *,
        patience: float | None = None,
    ) -> None:
        """Prepares a watch; see :meth:`Client.watch_batch`."""
        super().__init__(transport, lambda stub: stub.WatchBatch, BatchCursor(request), patience)


class AsyncBatchWatch(AsyncWatch[control_pb2.WatchBatchRequest, control_pb2.WatchBatchResponse]):
    """As :class:`BatchWatch`, for ``async for``."""

    def __init__(
        self,
        transport: AsyncTransport,
        request: control_pb2.WatchBatchRequest,
        *,
        patience: float | None = None,
    ) -> None:
        """Prepares a watch; see :meth:`Client.watch_batch`."""
        super().__init__(transport, lambda stub: stub.WatchBatch, BatchCursor(request), patience)


def _ended() -> MidcourseError:
    """Returns why there is no stream after the server ended one in good order."""
    return UnavailableError("the control plane ended the watch")
