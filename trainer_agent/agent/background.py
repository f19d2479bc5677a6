"""Work beside the main flow, whose failure is the failure of the whole."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine
from typing import Any


class Background:
    """Runs tasks, and wakes whoever waits for a condition when something has changed."""

    def __init__(self) -> None:
        """Runs nothing yet."""
        self._tasks: set[asyncio.Task[None]] = set()
        self._failure: BaseException | None = None
        self._changed = asyncio.Event()

    def start(self, work: Coroutine[Any, Any, None]) -> None:
        """Begins some work."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def changed(self) -> None:
        """Notes that a condition may hold now."""
        self._changed.set()

    def fail(self, error: BaseException) -> None:
        """Notes a failure beside the tasks."""
        self._failure = self._failure or error
        self._changed.set()

    async def until(self, condition: Callable[[], bool], timeout: float | None = None) -> bool:
        """Waits until a condition holds or the time is up, and returns whether it holds.

        Raises:
            BaseException: What a task failed with.
        """
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                while not condition() and self._failure is None:
                    self._changed.clear()
                    await self._changed.wait()
        if self._failure is not None:
            raise self._failure
        return condition()

    async def stop(self) -> None:
        """Ends all tasks."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            self._failure = self._failure or task.exception()
        self._changed.set()
