"""Notices that the training process is gone, however it went."""

from __future__ import annotations

import asyncio
import os
import select
from typing import Final

from trainer_agent.agent.exit_status import wait_status_of_reaped, wait_status_of_zombie

_PROCESS_TABLE_INTERVAL: Final = 1.0
_COLLECTION_INTERVAL: Final = 0.01
_COLLECTION_TIMEOUT: Final = 1.0


class TrainerWatch:
    """Watches one process by its descriptor, or, where the system has none, by its number."""

    def __init__(self, pidfd: int | None, pid: int | None) -> None:
        """Begins to watch.

        Args:
            pidfd: Descriptor of the process, which is closed by :meth:`close`; None: there is none.
            pid: Number of the process as seen from here; None: it can not be seen.
        """
        self._pidfd = pidfd
        self._pid = pid

    @property
    def pid(self) -> int | None:
        """Number of the process as seen from here; None: it can not be seen."""
        return self._pid

    @property
    def possible(self) -> bool:
        """Tells whether there is anything to watch."""
        return self._pidfd is not None or self._pid is not None

    def alive(self) -> bool:
        """Tells whether the process runs; also where nobody can tell."""
        if self._pidfd is not None:
            poller = select.poll()
            poller.register(self._pidfd, select.POLLIN)
            return not poller.poll(0)
        if self._pid is not None:
            try:
                os.kill(self._pid, 0)
            except ProcessLookupError:
                return False
            except PermissionError:
                return False  # the number is another user's process by now: ours was our own
        return True

    async def exited(self) -> int | None:
        """Waits until the process is gone; for ever where there is nothing to watch.

        Returns:
            Its wait status; None: unknown.
        """
        if self._pidfd is None:
            while self._pid is None or self.alive():  # noqa: ASYNC110 - no event tells of it
                await asyncio.sleep(_PROCESS_TABLE_INTERVAL)
            return None
        gone = asyncio.Event()
        loop = asyncio.get_running_loop()
        loop.add_reader(self._pidfd, gone.set)
        try:
            await gone.wait()
        finally:
            loop.remove_reader(self._pidfd)
        return await self._wait_status(self._pidfd)

    def close(self) -> None:
        """Ends the watch."""
        if self._pidfd is not None:
            os.close(self._pidfd)
        self._pidfd = self._pid = None

    async def _wait_status(self, pidfd: int) -> int | None:
        """Asks until the parent has collected the process, or has taken too long for it."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + _COLLECTION_TIMEOUT
        while True:
            for ask in (wait_status_of_reaped, wait_status_of_zombie):
                status = ask(pidfd)
                if status is not None:
                    return status
            if loop.time() >= deadline:
                return None
            await asyncio.sleep(_COLLECTION_INTERVAL)
