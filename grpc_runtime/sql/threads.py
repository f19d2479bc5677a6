"""Running what blocks on threads, and waiting for it in an event loop."""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar, cast

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")


@dataclass(slots=True, eq=False)
class Asked:
    """What a caller waits for, and what became of it on a thread.

    Attributes:
        done: Belongs to the event loop.
        orphaned: Called there where it succeeds after the caller was cancelled.
        value: Its result.
        error: Why there is none.
    """

    done: asyncio.Future[None]
    orphaned: Callable[[], None] | None = None
    value: Any = None
    error: BaseException | None = None

    def answer(self) -> None:
        """Lets the caller go on. To be called in the event loop, once it is over."""
        if not self.done.done():
            self.done.set_result(None)
        elif self.error is None and self.orphaned is not None:
            self.orphaned()

    async def result(self) -> Any:
        """Waits until it is over.

        Raises:
            BaseException: Why it failed.
        """
        await self.done
        if self.error is not None:
            raise self.error
        return self.value


@dataclass(slots=True, eq=False)
class _Call(Asked):
    call: Callable[[], Any] = lambda: None


class Threads:
    """A few threads, begun as they are needed. To be used from one event loop.

    What `concurrent.futures` and `asyncio.wrap_future` do takes twice the time, for every read.
    """

    def __init__(self, most: int, name: str) -> None:
        """Begins without any.

        Args:
            most: How many there may be.
            name: What they are called.
        """
        self._most = most
        self._name = name
        self._calls: queue.SimpleQueue[_Call | None] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._open = 0

    async def run(self, call: Callable[[], T], *, orphaned: Callable[[], None] | None = None) -> T:
        """Runs `call` on one of the threads.

        If the caller is cancelled, a call that has begun is finished all the same.

        Args:
            call: What to run.
            orphaned: Is called in the event loop where `call` returns after the caller was
                cancelled.

        Raises:
            BaseException: Whatever `call` raises.
        """
        asked = _Call(asyncio.get_running_loop().create_future(), orphaned, call=call)
        self._open += 1
        if len(self._threads) < min(self._open, self._most):
            name = f"{self._name}_{len(self._threads)}"
            self._threads.append(threading.Thread(target=self._work, name=name, daemon=True))
            self._threads[-1].start()
        self._calls.put(asked)
        return cast(T, await asked.result())

    def join(self) -> None:
        """Waits until everything that was asked for is done, and ends the threads. Blocks."""
        for _ in self._threads:
            self._calls.put(None)
        for thread in self._threads:
            thread.join()

    def _work(self) -> None:
        while (asked := self._calls.get()) is not None:
            if asked.done.cancelled():
                # Nobody is told that it never began.
                asked.orphaned = None
            else:
                try:
                    asked.value = asked.call()
                except BaseException as error:  # noqa: BLE001 - it is the caller's
                    asked.error = error
            # A loop that is closed has nobody left who waits.
            with contextlib.suppress(RuntimeError):
                asked.done.get_loop().call_soon_threadsafe(self._answer, asked)

    def _answer(self, asked: _Call) -> None:
        self._open -= 1
        asked.answer()
