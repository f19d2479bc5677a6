"""Running what blocks on threads, and waiting for it in an event loop."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from concurrent.futures import Executor, Future
from typing import Any, TypeVar

T = TypeVar("T")


async def run_in(
    threads: Executor, call: Callable[[], T], *, orphaned: Callable[[], None] | None = None
) -> T:
    """Runs `call` on one of the threads.

    If the caller is cancelled, a call that has begun is finished all the same.

    Args:
        threads: Where to run it.
        call: What to run.
        orphaned: Is called in the event loop where `call` returns after the caller was
            cancelled.

    Raises:
        BaseException: Whatever `call` raises.
    """

    def attempt() -> tuple[T, None] | tuple[None, BaseException]:
        try:
            return call(), None
        except BaseException as error:  # noqa: BLE001 - raised below
            # Not by the future: some errors it does not take, and then nobody is answered.
            return None, error

    running = threads.submit(attempt)
    try:
        result = await asyncio.wrap_future(running)
    except asyncio.CancelledError:
        if orphaned is not None:
            running.add_done_callback(_teller(orphaned))
        raise
    if result[1] is not None:
        raise result[1]
    return result[0]


def _teller(orphaned: Callable[[], None]) -> Callable[[Future[Any]], None]:
    loop = asyncio.get_running_loop()

    def tell(done: Future[Any]) -> None:
        if not done.cancelled() and done.result()[1] is None:
            # A loop that is closed has nobody left to tell.
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(orphaned)

    return tell
