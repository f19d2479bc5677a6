"""Threads for what blocks: a few of its own for each kind of work, so that none waits for another.

The event loop's own threads look up the addresses of providers, and are as few as processors: a
control plane that hangs would take them all.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


class Threads:
    """Some threads, begun as they are needed."""

    def __init__(self, most: int, name: str) -> None:
        """Begins without any.

        Args:
            most: How many there may be.
            name: What they are called.
        """
        self._executor = ThreadPoolExecutor(most, thread_name_prefix=name)

    async def run(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Runs a call on one of the threads, in the context of the caller.

        Raises:
            BaseException: Whatever it raises.
        """
        context = copy_context()
        return await asyncio.get_running_loop().run_in_executor(
            self._executor, lambda: context.run(call, *args, **kwargs)
        )

    def close(self) -> None:
        """Takes no more calls, and begins none that waits; those that run come to their end."""
        self._executor.shutdown(wait=False, cancel_futures=True)
