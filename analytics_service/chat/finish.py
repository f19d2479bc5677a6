"""Work that is finished although its task is cancelled, or its store away."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from typing import NamedTuple, TypeAlias, TypeVar

import structlog

from analytics_service.errors import Reason, Refusal

T = TypeVar("T")

Write: TypeAlias = Callable[[], Awaitable[object]]
"""A write to the store that may be made again."""

_log = structlog.get_logger(__name__)

RETRY_SECONDS = 1.0
"""Between two attempts to write what the store could not take."""


async def finished(work: Awaitable[T]) -> tuple[T, bool]:
    """Awaits something to its end, even where the awaiting task is cancelled meanwhile.

    Returns:
        What it came to, and whether the task was cancelled: then the caller raises CancelledError
        when it has done what must be done.

    Raises:
        BaseException: Whatever the work raises.
    """
    task = asyncio.ensure_future(work)
    cancelled = False
    while not task.done():
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError:
            cancelled = True
    return task.result(), cancelled


class _Late(NamedTuple):
    what: str
    write: Write
    otherwise: Write | None


class Backlog:
    """Ends of calls and answers that the store could not take, written as soon as it can.

    Without them a session would stay busy and a reservation set aside until the process ends.
    Each belongs to a beginning that is on record, so there are no more of them than there were
    answers being got when the store went away.
    """

    def __init__(self) -> None:
        self._late: deque[_Late] = deque()
        self._flushing = asyncio.Lock()

    def __len__(self) -> int:
        """How many writes are still to be made."""
        return len(self._late)

    async def write(
        self, what: str, write: Callable[[], Awaitable[T]], otherwise: Write | None = None
    ) -> T:
        """Writes something, now or as soon as the store can take it.

        Args:
            what: What it is, for the log.
            write: May be called several times.
            otherwise: See `add`.

        Raises:
            Refusal: STORE_UNAVAILABLE: not now.
        """
        try:
            return await write()
        except Refusal as refusal:
            if refusal.reason is Reason.STORE_UNAVAILABLE:
                self.add(what, write, otherwise)
            raise

    def add(self, what: str, write: Write, otherwise: Write | None = None) -> None:
        """Has something written as soon as the store can take it.

        Args:
            what: What it is, for the log.
            write: May be called several times.
            otherwise: What to write in its place where no database can keep it; None: nothing.
        """
        _log.warning("to be written later", what=what)
        self._late.append(_Late(what, write, otherwise))

    async def run(self) -> None:
        """Makes late writes for ever."""
        while True:
            await asyncio.sleep(RETRY_SECONDS)
            await self.flush()

    async def flush(self) -> None:
        """Makes late writes, in their order, as far as the store can take them."""
        async with self._flushing:
            while self._late:
                what, write, otherwise = self._late[0]
                try:
                    await write()
                except Refusal as refusal:
                    if refusal.reason in (Reason.STORE_UNAVAILABLE, Reason.SHUTTING_DOWN):
                        return
                    _log.error("can not be written any more", what=what, error=refusal.message)
                except Exception:  # noqa: BLE001 - logged; it is not to hold up the others
                    _log.exception("can not be written at all", what=what)
                    if otherwise is not None:
                        self._late[0] = _Late(what, otherwise, None)
                        continue
                else:
                    _log.info("written late", what=what)
                self._late.popleft()
