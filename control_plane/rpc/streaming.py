"""Sending streams: whoever does not take what is sent is cut, at nobody else's cost."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, TypeVar

from control_plane.domain.errors import Reason, Refusal

if TYPE_CHECKING:
    import grpc

T = TypeVar("T")


async def send_all(
    context: grpc.aio.ServicerContext[Any, Any],
    things: AsyncGenerator[T],
    to_proto: Callable[[T], Any],
    *,
    patience: float,
) -> None:
    """Sends things as they come, each read only once the one before it was taken.

    Args:
        context: Of the call.
        things: What is sent; closed at the end.
        to_proto: What they are as messages.
        patience: Seconds that a message may wait for a caller who does not read.

    Raises:
        Refusal: WATCHER_TOO_SLOW.
    """
    async with aclosing(things):
        async for thing in things:
            try:
                async with asyncio.timeout(patience):
                    await context.write(to_proto(thing))
            except TimeoutError:
                raise Refusal(
                    Reason.WATCHER_TOO_SLOW,
                    f"nothing of this stream was read for {patience:g} s, so it was ended; read "
                    "faster, or choose less, and go on from the last position",
                    retry_delay=1.0,
                ) from None
