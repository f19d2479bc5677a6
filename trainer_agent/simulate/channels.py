"""Connections that several sessions share.

A real agent has a connection of its own, and so has each light job unless told otherwise. Sharing
spares files and memory on both sides where there are more light jobs than that.
"""

from __future__ import annotations

import contextlib
import itertools
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

import grpc

from grpc_runtime.errors import StatusError
from trainer_agent.agent.connector import own_channel

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


@dataclass(eq=False, slots=True)
class _Shared:
    channel: grpc.aio.Channel
    closing: AsyncExitStack
    users: int = 0


class SharedChannels:
    """A number of connections for each address, used in turns.

    One that fails is not given to anybody again: the next session makes a new one in its place.
    """

    def __init__(self, count: int) -> None:
        """Prepares ``count`` connections, at least one; each is opened when it is first used."""
        self._shared: dict[tuple[str, int], _Shared] = {}
        self._turn = itertools.cycle(range(max(1, count)))

    @contextlib.asynccontextmanager
    async def open(self, target: str) -> AsyncIterator[grpc.aio.Channel]:
        """Lends a connection for one session."""
        place = (target, next(self._turn))
        shared = self._shared.get(place)
        if shared is None:
            closing = AsyncExitStack()
            shared = _Shared(await closing.enter_async_context(own_channel(target)), closing)
            self._shared[place] = shared
        shared.users += 1
        try:
            yield shared.channel
        except StatusError as error:
            if error.code is grpc.StatusCode.UNAVAILABLE:
                self._give_up(place, shared)
            raise
        finally:
            shared.users -= 1
            if not shared.users:
                self._give_up(place, shared)
                await shared.closing.aclose()

    def _give_up(self, place: tuple[str, int], shared: _Shared) -> None:
        if self._shared.get(place) is shared:
            del self._shared[place]
