"""The asynchronous client behind the face of the blocking one, so that a test tests both."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import inspect
import threading
from collections.abc import Callable, Iterator
from typing import Any, Self, cast

from control_plane.client import AsyncClient, Client

KINDS = ("blocking", "asynchronous")
Connect = Callable[..., Client]

_SECONDS = 60


class EventLoop:
    """An event loop in a thread of its own."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()

    def run(self, call: Any) -> Any:
        """Waits for the answer of a coroutine; its error is raised here."""
        return asyncio.run_coroutine_threadsafe(call, self._loop).result(_SECONDS)

    def stop(self) -> list[str]:
        """Ends the loop; returns the tasks that were left."""
        left = self.run(self._left())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(_SECONDS)
        self._loop.close()
        return cast(list[str], left)

    async def _left(self) -> list[str]:
        mine = asyncio.current_task()
        others = [task for task in asyncio.all_tasks() if task is not mine]
        if others:  # what has been cancelled needs a round to end
            await asyncio.wait(others, timeout=5)
        return [repr(task) for task in others if not task.done()]


@contextlib.contextmanager
def connecting(kind: str) -> Iterator[Connect]:
    """What makes clients of one of the kinds; at the end nothing of them may be left."""
    if kind == "blocking":
        yield Client
        return
    loop = EventLoop()
    try:
        yield functools.partial(BlockingClient.connect, loop)
    finally:
        left = loop.stop()
    assert not left


class BlockingClient:
    """An asynchronous client whose calls block."""

    def __init__(self, loop: EventLoop, client: AsyncClient) -> None:
        self._loop = loop
        self._client = client

    @classmethod
    def connect(cls, loop: EventLoop, *args: Any, **options: Any) -> Client:
        """Makes a client; to its users it is the blocking one."""

        async def made() -> AsyncClient:
            return AsyncClient(*args, **options)

        return cast(Client, cls(loop, loop.run(made())))

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._client, name)
        return functools.partial(self._call, found) if callable(found) else found

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.run(self._client.close())

    def _call(self, method: Any, *args: Any, **options: Any) -> Any:
        async def begun() -> Any:
            answer = method(*args, **options)  # in the loop, whose primitives it may make
            return await answer if inspect.iscoroutine(answer) else answer

        answer = self._loop.run(begun())
        if isinstance(answer, AsyncClient):
            return BlockingClient(self._loop, answer)
        return BlockingIterator(self._loop, answer) if hasattr(answer, "__anext__") else answer


class BlockingIterator(Iterator[Any]):
    """A listing or a watch whose iteration blocks."""

    def __init__(self, loop: EventLoop, iterator: Any) -> None:
        self._loop = loop
        self._iterator = iterator

    def __next__(self) -> Any:
        end = object()

        async def following() -> Any:  # StopAsyncIteration does not cross threads as itself
            return await anext(self._iterator, end)

        event = self._loop.run(following())
        if event is end:
            raise StopIteration
        return event

    def __getattr__(self, name: str) -> Any:
        return getattr(self._iterator, name)

    def close(self) -> None:
        self._loop.run(self._iterator.aclose())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
