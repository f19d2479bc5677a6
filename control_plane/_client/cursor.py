"""One watch made of any number of streams: pure."""

from __future__ import annotations

from typing import Protocol, TypeVar

from midcourse.control.v1 import control_pb2

_Request_co = TypeVar("_Request_co", covariant=True)
_Response = TypeVar("_Response")


class Cursor(Protocol[_Request_co, _Response]):
    """Makes one watch of any number of streams.

    Attributes:
        ends: Whether a stream that the server ends in good order is the last one.
    """

    ends: bool

    def next_request(self) -> _Request_co:
        """Returns the request that opens the next stream."""

    def feed(self, event: _Response) -> list[_Response]:
        """Takes an event from the stream; returns those that can be handed out now."""

    def hand_out(self, event: _Response) -> bool:
        """Notes that an event goes to whoever watches; says whether nothing can follow it."""


class WatchCursor:
    """Keeps a watch of jobs without gaps and duplicates.

    A snapshot has no position to go on from: it is held back until it is complete, so that one
    that breaks off is never seen in part, and can begin anew.

    Attributes:
        position: Where the next stream is to go on; empty: at a snapshot.
        seen: Where a later watch can go on after what was handed out; empty: at a snapshot.
    """

    ends = False

    def __init__(self, request: control_pb2.WatchJobsRequest) -> None:
        self._request = request
        self._held: list[control_pb2.WatchJobsResponse] = []
        self.position = self.seen = request.position

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

    def hand_out(self, event: control_pb2.WatchJobsResponse) -> bool:
        """Notes that an event is seen; nothing can follow where the only job watched is gone."""
        self.seen = event.position or self.seen
        return bool(self._request.name) and event.type == control_pb2.JOB_EVENT_TYPE_DELETED


class BatchCursor:
    """Keeps a watch of a batch: each stream begins with all items, the server ends the last."""

    ends = True

    def __init__(self, request: control_pb2.WatchBatchRequest) -> None:
        self._request = request

    def next_request(self) -> control_pb2.WatchBatchRequest:
        """Returns the request that opens the next stream."""
        return self._request

    def feed(self, event: control_pb2.WatchBatchResponse) -> list[control_pb2.WatchBatchResponse]:
        """Takes an event from the stream; returns those that can be handed out now."""
        return [event]

    def hand_out(self, event: control_pb2.WatchBatchResponse) -> bool:
        """Says whether nothing can follow; here the server tells, by ending the stream."""
        return False
