"""Events on their way from the task that gets an answer to the one that hands it out."""

from __future__ import annotations

import asyncio
from collections import deque

from analytics_service.chat.events import ChatEvent

MAX_WAITING = 256
"""Events that wait for a slow reader; the provider is read no faster than that."""


class EventStream:
    """A bounded queue with one writer and one reader, either of which may leave."""

    def __init__(self) -> None:
        self._events: deque[ChatEvent] = deque()
        self._changed = asyncio.Event()
        self._room = asyncio.Event()
        self._closed = False
        self._detached = False

    async def put(self, event: ChatEvent) -> None:
        """Hands an event on; waits while the reader is behind."""
        while len(self._events) >= MAX_WAITING and not self._detached:
            self._room.clear()
            await self._room.wait()
        is_first = not self._events
        self.push(event)
        if is_first:
            # The reader's turn: what comes at once may be much, and the first of it is waited for.
            await asyncio.sleep(0)

    def push(self, event: ChatEvent) -> None:
        """Hands an event on, however far behind the reader is: for the few last ones."""
        if not self._detached:
            self._events.append(event)
            self._changed.set()

    def close(self) -> None:
        """Says that nothing more comes."""
        self._closed = True
        self._changed.set()

    def detach(self) -> None:
        """Says that nobody reads any more."""
        self._detached = True
        self._events.clear()
        self._room.set()

    def __aiter__(self) -> EventStream:
        return self

    async def __anext__(self) -> ChatEvent:
        while not self._events:
            if self._closed:
                raise StopAsyncIteration
            self._changed.clear()
            await self._changed.wait()
        self._room.set()
        return self._events.popleft()
