"""What is accepted for a job, on its way to the agent by one stream."""

from __future__ import annotations

import asyncio
import contextvars
import itertools
import random
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from control_plane.domain.errors import Reason, Refusal
from control_plane.domain.job import JobState
from control_plane.services.bus import session_topic
from control_plane.services.fenced_store import tell_nobody
from control_plane.services.jobs import job_event
from control_plane.services.outbox import Delivery, Withdrawal
from control_plane.services.records import EventKind
from control_plane.services.updates import settle_in

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from control_plane.domain.job import Job
    from control_plane.domain.update import Update
    from control_plane.services.fenced_store import FencedStore
    from control_plane.services.outbox import Outbox
    from control_plane.services.ports import Transaction
    from control_plane.services.session_parts import SessionParts


class Deliveries:
    """Updates that one stream carries, each once, and what it asks back."""

    __slots__ = (
        "_again",
        "_busy",
        "_closed",
        "_context",
        "_failed",
        "_found_lost",
        "_new_nonce",
        "_nonces",
        "_outbox",
        "_parts",
        "_store",
        "sent",
        "withdrawn",
    )

    def __init__(
        self,
        parts: SessionParts,
        store: FencedStore,
        outbox: Outbox,
        *,
        found_lost: Callable[[], None],
        failed: Callable[[BaseException], None],
    ) -> None:
        """Begins with nothing sent.

        Args:
            parts: What every session works with.
            store: Where updates are looked up.
            outbox: What goes out by the stream.
            found_lost: Is told where the job has become LOST meanwhile.
            failed: Is told why nothing more can be looked up, such as that this session is not
                served any more.
        """
        self._parts = parts
        self._store = store
        self._outbox = outbox
        self._found_lost = found_lost
        self._failed = failed
        # Whoever wakes it is another call than the one that it belongs to.
        self._context = contextvars.copy_context()
        self._busy: asyncio.Future[Any] | None = None
        self._again = False
        self._closed = False
        self._nonces: dict[int, int] = {}
        self._new_nonce = itertools.count(random.getrandbits(32) << 16)
        self.sent: set[int] = set()
        self.withdrawn: set[int] = set()

    def answered(self, nonce: int, revision: int) -> bool:
        """Notes the reply to a delivery; returns whether there was one without a reply."""
        if self._nonces.get(nonce) != revision:
            return False
        del self._nonces[nonce]
        return True

    def holds(self, revisions: Iterable[int]) -> None:
        """Notes what the trainer has already: it need not be sent, and only it can give it back."""
        self.sent.update(revisions)

    def send(self, updates: Iterable[Update]) -> None:
        """Sends updates that this stream has not carried yet."""
        for update in updates:
            if update.revision in self.sent:
                if update.cancel_request is not None:
                    self.withdraw([update.revision])
                continue
            self.sent.add(update.revision)
            nonce = next(self._new_nonce)
            self._nonces[nonce] = update.revision
            left = None
            if update.spec.deadline is not None and update.is_open:
                left = max(0.0, (update.spec.deadline - self._parts.clock()).total_seconds())
            self._outbox.put(Delivery(nonce, update, left))

    def send_again(self, updates: Iterable[Update]) -> None:
        """Sends updates that the trainer has not got, though this stream may have carried them."""
        updates = tuple(updates)
        self.sent -= {update.revision for update in updates}
        self.send(updates)

    def withdraw(self, revisions: Iterable[int]) -> None:
        """Asks the trainer to give updates back."""
        for revision in revisions:
            if revision not in self.withdrawn:
                self.withdrawn.add(revision)
                self._outbox.put(Withdrawal(revision))

    def withdraw_again(self, revisions: Iterable[int]) -> None:
        """Asks for updates that the trainer has still not given back."""
        revisions = tuple(revisions)
        self.withdrawn -= set(revisions)
        self.withdraw(revisions)

    def begin(self) -> None:
        """Sends what is accepted, now and whenever there is something new, until `close`."""
        self._parts.bus.attach(session_topic(self._store.job_id), self)
        self.wake()

    def close(self) -> None:
        """Sends nothing more."""
        self._parts.bus.remove(session_topic(self._store.job_id), self)
        self._again = False
        self._closed = True
        if self._busy is not None:
            self._busy.cancel()
        self._found_lost = self._failed = tell_nobody

    def wake(self) -> None:
        """Looks for what is new, together with other sessions that are woken now.

        No task waits for that: there are thousands of sessions, of which few are woken.
        """
        if self._busy is not None:
            self._again = True
            return
        self._busy = self._look()
        self._busy.add_done_callback(self._looked, context=self._context)

    def _look(self) -> asyncio.Future[tuple[Job, list[Update]]]:
        """Has the job and its updates read that are accepted and not settled."""

        def work(tx: Transaction) -> tuple[Job, list[Update]]:
            job = self._store.job(tx)
            return job, tx.open_updates(job)

        return self._parts.deliveries.ask(self._store.job_id, work)

    def _looked(self, looked: asyncio.Future[tuple[Job, list[Update]]]) -> None:
        """Sends what was found, where that is all there is to it."""
        if looked.cancelled():
            return
        error = looked.exception()
        if self._closed:
            return  # just now
        if error is None:
            job, updates = looked.result()
            if _is_open(job) and not self._unsent(updates):
                self.send(updates)
                self._found(job)
                self._rest()
                return
        elif not (isinstance(error, Refusal) and error.reason is Reason.STORE_UNAVAILABLE):
            self._failed(error)
            return
        self._busy = asyncio.get_running_loop().create_task(self._mend())
        self._busy.add_done_callback(self._mended)

    async def _mend(self) -> None:
        """Sends what is accepted, where that takes more than a look.

        The store is away, or another server took this stream for dead, or an update is withdrawn
        before it was sent: that is settled here, as nobody else knows that the trainer has not
        got it.

        Raises:
            Refusal: If this session is not served any more.
        """
        job, updates = await self._store.patiently(self._look)
        self._found(job)
        while not _is_open(job):
            await self._take_back()
            job, updates = await self._store.patiently(self._look)
        if unsent := self._unsent(updates):
            await self._settle_unsent(unsent)
        self.send(u for u in updates if u not in unsent)

    def _mended(self, mended: asyncio.Future[None]) -> None:
        if mended.cancelled():
            return
        if (error := mended.exception()) is not None:
            self._failed(error)
        else:
            self._rest()

    def _rest(self) -> None:
        """Waits to be woken, unless it was meanwhile."""
        self._busy = None
        if self._again:
            self._again = False
            self.wake()

    def _unsent(self, updates: Iterable[Update]) -> list[Update]:
        """Those that are withdrawn, and that this stream has not carried."""
        return [u for u in updates if u.cancel_request and u.revision not in self.sent]

    def _found(self, job: Job) -> None:
        if job.state is JobState.LOST:
            self._found_lost()

    async def _take_back(self) -> None:
        """Notes that the stream is open after all: only then may anything be sent by it."""
        now = self._parts.clock()

        def work(tx: Transaction, job: Job) -> None:
            # A transaction that was begun before the end of the stream may come after it.
            if job.session is not None and not self._closed:
                session = replace(job.session, connected=True, last_revision=0)
                tx.save_job(replace(job, session=session).changed(now))
                tx.append_event(job_event(EventKind.MODIFIED, job, now))

        await self._store.write(work)

    async def _settle_unsent(self, updates: list[Update]) -> None:
        now = self._parts.clock()

        def work(tx: Transaction, job: Job) -> None:
            for stale in updates:
                update = tx.update(job, stale.revision)
                if update is not None and update.is_open and update.cancel_request is not None:
                    job = settle_in(tx, job, update, update.cancel_request, now)

        await self._store.write(work)


def _is_open(job: Job) -> bool:
    """Whether the store has the stream down as open; not where another server found it dead."""
    return job.session is not None and job.session.connected
