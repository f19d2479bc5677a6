"""Running what blocks on threads, and waiting for it in an event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Executor
from typing import TypeVar

T = TypeVar("T")


async def run_in(threads: Executor, call: Callable[[], T]) -> T:
    """Runs `call` on one of the threads.

    If the caller is cancelled, a call that has begun is finished all the same.

    Raises:
        BaseException: Whatever `call` raises.
    """

    def attempt() -> tuple[T, None] | tuple[None, BaseException]:
        try:
            return call(), None
        except BaseException as error:  # noqa: BLE001 - raised below
            # Not by the future: some errors it does not take, and then nobody is answered.
            return None, error

    result = await asyncio.get_running_loop().run_in_executor(threads, attempt)
    if result[1] is not None:
        raise result[1]
    return result[0]
