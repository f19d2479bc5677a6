"""Watching jobs across lost connections."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Protocol, Self

import grpc

from grpc_runtime.client.errors import MidcourseError, UnavailableError
from grpc_runtime.client.retry import RetryPolicy, is_transient
from midcourse.control.v1 import control_pb2


class WatchCursor:
    """Keeps a watch without gaps and duplicates over any number of streams. Pure.

    A snapshot has no position to go on from: it is held back until it is complete, so that one
    that breaks off is never seen in part, and can begin anew.

    Attributes:
        position: Where to go on; empty: at a snapshot.
    """

    def __init__(self, request: control_pb2.WatchJobsRequest) -> None:
        self._request = request
        self._held: list[control_pb2.WatchJobsResponse] = []
        self.position = request.position

    def next_request(self) -> control_pb2.WatchJobsRequest:
        """Returns the request that opens the next stream."""
        self._held.clear()
        request = control_pb2.WatchJobsRequest()
        request.CopyFrom(self._request)
        request.position = self.position
        return request

    def feed(self, event: control_pb2.WatchJobsResponse) -> list[control_pb2.WatchJobsResponse]:
        """Takes an event from the stream; returns those that can be handed out now."""
        if event.position:
            self.position = event.position
        self._held.append(event)
        if not self.position:
            return []
        ready, self._held = self._held, []
        return ready

    def is_last(self, event: control_pb2.WatchJobsResponse) -> bool:
        """Says whether nothing can follow: the only job watched is gone."""
        return bool(self._request.name) and event.type == control_pb2.JOB_EVENT_TYPE_DELETED


class ResponseStream(Protocol):
    """What this module uses of a gRPC call."""

    def __next__(self) -> control_pb2.WatchJobsResponse:
        """Returns the next response."""

    def cancel(self) -> bool:
        """Ends the call."""


class JobWatch(Iterator[control_pb2.WatchJobsResponse]):
    """The events of a watch, in order, without gaps or duplicates, through reconnects.

    Iterating blocks until the next event. It ends when :meth:`close` is called, from any thread,
    or when the one job watched is deleted.
    """

    def __init__(
        self,
        open_stream: Callable[[control_pb2.WatchJobsRequest], ResponseStream],
        translate: Callable[[grpc.RpcError], MidcourseError],
        request: control_pb2.WatchJobsRequest,
        *,
        policy: RetryPolicy,
        patience: float | None,
    ) -> None:
        """Prepares a watch; nothing is sent before the first event is asked for.

        Args:
            open_stream: Starts the call.
            translate: Turns gRPC's errors into the client's.
            request: What to watch.
            policy: Delays between tries, and how often to try before the first success.
            patience: Seconds without a connection, after the first success, until the error is
                raised; None: try for ever.
        """
        self._open_stream = open_stream
        self._translate = translate
        self._cursor = WatchCursor(request)
        self._policy = policy
        self._patience = patience
        self._stream: ResponseStream | None = None
        self._ready: deque[control_pb2.WatchJobsResponse] = deque()
        self._closed = threading.Event()
        self._connected_once = False
        self._failures = 0
        self._down_since = 0.0
        self._interruption: MidcourseError | None = None
        self._position = request.position

    @property
    def interruption(self) -> MidcourseError | None:
        """Why there is no stream at the moment; None while there is one."""
        return self._interruption

    @property
    def position(self) -> str:
        """Where a later watch can go on after what was handed out; empty: at a snapshot."""
        return self._position

    def __next__(self) -> control_pb2.WatchJobsResponse:
        """Returns the next event.

        Raises:
            OutOfRangeError: The position is gone; watch anew from a snapshot.
            UnavailableError: Nobody answered, for longer than the watch's patience.
            MidcourseError: The server refused the watch for another reason.
        """
        while not self._ready:
            if self._closed.is_set():
                raise StopIteration
            self._receive()
        event = self._ready.popleft()
        self._position = event.position or self._position
        if self._cursor.is_last(event):
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
            event = next(self._stream)
        except StopIteration:
            self._stream = None
            self._back_off(UnavailableError("the control plane ended the watch"))
        except grpc.RpcError as error:
            self._stream = None
            if not self._closed.is_set():
                self._back_off(self._translate(error))
        else:
            self._connected_once = True
            self._failures = 0
            self._interruption = None
            self._ready.extend(self._cursor.feed(event))

    def _back_off(self, error: MidcourseError) -> None:
        if not is_transient(error):
            raise error
        self._failures += 1
        now = time.monotonic()
        if self._interruption is None:
            self._down_since = now
        self._interruption = error
        delay = self._policy.backoff(self._failures, error.retry_delay)
        if not self._connected_once:
            if self._failures >= self._policy.attempts:
                raise error
        elif self._patience is not None and now + delay - self._down_since > self._patience:
            raise error
        self._closed.wait(delay)
