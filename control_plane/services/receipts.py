"""What an agent says it has received: stored with its outcome, or else a little later."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING

from control_plane.domain.errors import Reason, Refusal
from control_plane.services.admission import deliver_in
from control_plane.services.fenced_store import LONGEST_RETRY_SECONDS, tell_nobody

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

    from control_plane.services.fenced_store import FencedStore

RECEIPT_SECONDS = 0.2
"""What an agent has received is stored after so long, unless it is settled by then."""


class Receipts:
    """Updates that an agent has received, and that are not yet stored as such."""

    __slots__ = ("_closed", "_done", "_due", "_failed", "_store", "_waiting")

    def __init__(
        self,
        store: FencedStore,
        done: Callable[[int], None],
        failed: Callable[[BaseException], None],
    ) -> None:
        """Begins without any.

        Args:
            store: Where to.
            done: Is told of the numbers of messages whose receipts are stored.
            failed: Is told why receipts can not be stored; not while they only have to wait.
        """
        self._store = store
        self._done = done
        self._failed = failed
        # By revision, the message's number, and when it came.
        self._waiting: dict[int, tuple[int, datetime]] = {}
        self._due: asyncio.TimerHandle | None = None
        self._closed = False

    def __len__(self) -> int:
        """Those that are not on their way to the store."""
        return len(self._waiting)

    def add(self, revision: int, number: int, now: datetime) -> None:
        """An update was received, as a message said just now."""
        self._waiting[revision] = number, now
        self._store_within(RECEIPT_SECONDS)

    def take(self, revision: int) -> tuple[int, datetime] | None:
        """Lets one be stored with its outcome: the message's number, and when it came."""
        return self._waiting.pop(revision, None)

    def close(self) -> dict[int, datetime]:
        """Lets all be stored with the end of the session: when they came, by revision."""
        self._closed = True
        if self._due is not None:
            self._due.cancel()
        self._done = self._failed = tell_nobody
        return _times(self._waiting)

    def _store_within(self, seconds: float) -> None:
        if self._due is None and not self._closed:
            loop = asyncio.get_running_loop()
            self._due = loop.call_later(seconds, self._write, seconds)

    def _write(self, waited: float) -> None:
        """Has them stored, together with what others have to store."""
        self._due = None
        receipts, self._waiting = self._waiting, {}
        if receipts:
            asked = self._store.ask(lambda tx, job: deliver_in(tx, job, _times(receipts)))
            asked.add_done_callback(partial(self._stored, receipts, waited))

    def _stored(
        self,
        receipts: dict[int, tuple[int, datetime]],
        waited: float,
        asked: asyncio.Future[None],
    ) -> None:
        error = asked.exception()
        if error is None:
            for number, _ in receipts.values():
                self._done(number)
        elif isinstance(error, Refusal) and error.reason is Reason.STORE_UNAVAILABLE:
            self._waiting = receipts | self._waiting
            self._store_within(min(2 * waited, LONGEST_RETRY_SECONDS))
        else:
            self._failed(error)


def _times(receipts: dict[int, tuple[int, datetime]]) -> dict[int, datetime]:
    return {revision: time for revision, (_, time) in receipts.items()}
