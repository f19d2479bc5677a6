"""``grpc.health.v1`` for a server that drains, and that strangers may ask.

The library's servicer writes to watchers while it holds the lock that a change of status needs, so
that one who does not read keeps the status as it is; it has no limits; and its watches never end.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any, Final

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from grpc_runtime.auth import host_of
from grpc_runtime.errors import StatusError
from grpc_runtime.limits import CallLimits, OpenLimit

_Response = health_pb2.HealthCheckResponse
_messages: Any = health_pb2  # whose type stubs do not know List yet

MOST_WATCHES: Final = 500
"""Most ``Watch`` streams that may be open."""
MOST_WATCHES_OF_ONE_HOST: Final = 100
"""Most ``Watch`` streams that may be open from one address."""
# What a caller sends is kept for as long as its call lasts.
_MOST_REQUEST_BYTES: Final = 1_000


class HealthServicer(health_pb2_grpc.HealthServicer):
    """Tells whether the services of a server serve, and whoever watches when that changes."""

    def __init__(self) -> None:
        """Makes a servicer that reports SERVING for the server as a whole."""
        self._status: dict[str, int] = {"": _Response.SERVING}
        self._changed = asyncio.Event()
        self._opening = False
        self._draining = False
        self._closed = False
        self._watches = CallLimits(
            open_limit=OpenLimit(
                "health watches",
                {"Watch"},
                most=MOST_WATCHES,
                most_per_principal=MOST_WATCHES_OF_ONE_HOST,
            )
        )

    async def Check(self, request: Any, _context: Any) -> Any:  # noqa: N802 - the RPC's name
        """Returns the status of a service.

        Raises:
            StatusError: NOT_FOUND, there is no such service.
        """
        status = self._of(_name(request))
        if status is None:
            raise StatusError(
                grpc.StatusCode.NOT_FOUND,
                "this server has no service of that name",
                reason="SERVICE_UNKNOWN",
            )
        return _Response(status=status)

    async def List(self, _request: Any, _context: Any) -> Any:  # noqa: N802 - the RPC's name
        """Returns the status of every service."""
        statuses = {name: _Response(status=status) for name, status in self._status.items()}
        return _messages.HealthListResponse(statuses=statuses)

    async def Watch(self, request: Any, context: Any) -> AsyncIterator[Any]:  # noqa: N802 - the RPC's name
        """Sends the status of a service and every change of it, until :meth:`close`.

        Of an unknown service it says so and ends, as soon as all are known: there will be no other
        services.

        Raises:
            StatusError: RESOURCE_EXHAUSTED, too many watch.
        """
        name = _name(request)
        host = host_of(context.peer())
        self._watches.enter(host, "Watch")
        try:
            told = None
            while True:
                changed, status = self._changed, self._of(name)
                if status is None:
                    yield _Response(status=_Response.SERVICE_UNKNOWN)
                    return
                if status != told:
                    told = status
                    yield _Response(status=status)
                    # What changed while that was sent, which may take long, is told before an end.
                    continue
                if self._closed:
                    return
                await changed.wait()
        finally:
            self._watches.leave(host)

    def opening(self) -> None:
        """Has NOT_SERVING said of the server, and of services yet to come, until it is open."""
        self._opening = True
        self.set("", _Response.NOT_SERVING)

    def opened(self) -> None:
        """Has SERVING said of the server, whose services have all been set by now."""
        self._opening = False
        self.set("", _Response.SERVING)

    def set(self, service: str, status: int) -> None:
        """Sets the status of a service; of no effect while the server drains."""
        if not self._draining:
            self._status[service] = status
            self._wake()

    def drain(self) -> None:
        """Sets the status of all services to NOT_SERVING, for ever."""
        self._draining = True
        self._status = dict.fromkeys(self._status, _Response.NOT_SERVING)
        self._wake()

    def close(self) -> None:
        """Ends all ``Watch`` streams; those opened later end at once."""
        self._closed = True
        self._wake()

    def _of(self, service: str) -> int | None:
        """The status of a service; None: there is none of that name."""
        return self._status.get(service, _Response.NOT_SERVING if self._opening else None)

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()


def _name(request: Any) -> str:
    """The service that is asked about.

    Raises:
        StatusError: INVALID_ARGUMENT, the request is too long.
    """
    if (size := request.ByteSize()) > _MOST_REQUEST_BYTES:
        raise StatusError(
            grpc.StatusCode.INVALID_ARGUMENT,
            f"got a request of {size} bytes, allowed for health checks: {_MOST_REQUEST_BYTES}",
            reason="INVALID_ARGUMENT",
        )
    name: str = request.service
    return name
