"""``grpc.health.v1`` for a server that drains."""

from __future__ import annotations

import asyncio
from typing import Any

from grpc_health.v1 import health


class HealthServicer(health.aio.HealthServicer):
    """The library's servicer, but open ``Watch`` streams can be ended.

    The library's never end by themselves, so a single watching client would hold up every stop
    for the whole grace period.
    """

    def __init__(self) -> None:
        """Makes a servicer that reports SERVING for the server as a whole."""
        super().__init__()
        self._closed = asyncio.Event()

    async def Watch(self, request: Any, context: Any) -> None:  # noqa: N802 - the RPC's name
        """Sends the status of a service and every change of it, until :meth:`close`."""
        watching = asyncio.create_task(super().Watch(request, context))
        closing = asyncio.create_task(self._closed.wait())
        try:
            await asyncio.wait((watching, closing), return_when=asyncio.FIRST_COMPLETED)
            if watching.done():
                watching.result()
        finally:
            watching.cancel()
            closing.cancel()
            await asyncio.gather(watching, closing, return_exceptions=True)

    def close(self) -> None:
        """Ends all ``Watch`` streams; those opened later end at once."""
        self._closed.set()
