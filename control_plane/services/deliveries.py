"""What is accepted for a job, on its way to the agent by one stream."""

from __future__ import annotations

import itertools
import random
from dataclasses import replace
from typing import TYPE_CHECKING

from control_plane.domain.job import JobState
from control_plane.services.bus import session_topic
from control_plane.services.jobs import job_event
from control_plane.services.outbox import Delivery, Withdrawal
from control_plane.services.ports import EventKind
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

    __slots__ = ("_new_nonce", "_nonces", "_outbox", "_parts", "_store", "sent", "withdrawn")

    def __init__(self, parts: SessionParts, store: FencedStore, outbox: Outbox) -> None:
        """Begins with nothing sent."""
        self._parts = parts
        self._store = store
        self._outbox = outbox
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

    async def run(self, *, found_lost: Callable[[], None]) -> None:
        """Sends what is accepted, whenever there is something, until cancelled.

        An update that is withdrawn before it was sent is settled here: nobody else
        knows that the trainer has not got it.

        Args:
            found_lost: Is told where the job has become LOST meanwhile.

        Raises:
            Refusal: If this session is not served any more.
        """

        def open_updates(tx: Transaction) -> list[Update] | None:
            """What is accepted and not settled; None: another server took this one for dead."""
            job = self._store.job(tx)
            if job.state is JobState.LOST:
                found_lost()
            return tx.open_updates(job) if job.session and job.session.connected else None

        subscription = self._parts.bus.subscribe(session_topic(self._store.job_id))
        try:
            while True:
                updates = await self._store.patiently(
                    lambda: self._parts.deliveries.read(self._store.job_id, open_updates)
                )
                if updates is None:
                    await self._take_back()
                    continue
                unsent = [u for u in updates if u.cancel_request and u.revision not in self.sent]
                if unsent:
                    await self._settle_unsent(unsent)
                self.send(u for u in updates if u not in unsent)
                await subscription.wait()
        finally:
            subscription.close()

    async def _take_back(self) -> None:
        """Notes that the stream is open after all: only then may anything be sent by it."""
        now = self._parts.clock()

        def work(tx: Transaction, job: Job) -> None:
            if job.session is not None:
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
