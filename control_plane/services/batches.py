"""Use cases around batches: one update each for many jobs, accepted together, then followed."""

from __future__ import annotations

import asyncio
import uuid
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from control_plane.domain import batch as rules
from control_plane.domain.batch import Batch, BatchItem, item_of
from control_plane.domain.errors import Reason, Refusal, invalid, shutting_down
from control_plane.domain.names import batch_name
from control_plane.domain.update import (
    MAX_REASON,
    Cancelled,
    Update,
    UpdateState,
    check_author,
    check_request_id,
    check_spec,
)
from control_plane.services.batch_admission import chosen, judge
from control_plane.services.bus import JOBS, session_topic, updates_topic
from control_plane.services.followed_batch import BatchView, Followed, view_of
from control_plane.services.updates import accept_all_in, cancel_in
from control_plane.services.views import need_batch

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Iterable, Iterator, Sequence
    from datetime import datetime

    from control_plane.domain.update import Transition
    from control_plane.services.batch_admission import BatchSubmission
    from control_plane.services.ports import Clock, Store, Transaction, WakeupBus
    from control_plane.services.records import Member
    from control_plane.services.telemetry import TelemetryHub

CHUNK = 1_000
"""Most items in one message of a watch, and most updates withdrawn in one transaction."""
_SCAN = 200
MOST_SCANNED = 1_000
"""Batches looked at for one page, so that it costs the same however few the caller may see."""
_COALESCE_SECONDS = 0.1
_LOOK_AGAIN_SECONDS = 5.0

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class BatchNews:
    """What a watch of a batch tells: the batch, and items that are new to the watcher."""

    view: BatchView
    items: tuple[BatchItem, ...]


@dataclass(frozen=True, slots=True)
class BatchPage:
    """A page of batches; perhaps few or none though there are more beyond `next_beyond`."""

    batches: tuple[BatchView, ...]
    next_beyond: int | None


class BatchService:
    """Accepts, reads, follows and withdraws batches."""

    def __init__(
        self,
        store: Store,
        clock: Clock,
        bus: WakeupBus,
        telemetry: TelemetryHub,
        *,
        max_open_updates: int,
    ) -> None:
        """Takes its parts.

        Args:
            store: Durable state.
            clock: The time.
            bus: Wakes sessions, watchers and those who wait.
            telemetry: Tells how far jobs have come, and what is in force there.
            max_open_updates: Most updates of a job that may be pending or delivered.
        """
        self._store = store
        self._clock = clock
        self._bus = bus
        self._telemetry = telemetry
        self._max_open = max_open_updates
        # What the open updates of the newest batch would change: who sends one watches it.
        self._expected: tuple[int, dict[str, tuple[Transition, ...]]] = (0, {})

    async def submit(self, asked: BatchSubmission) -> BatchNews:
        """Accepts a batch: it is valid and on disk when this returns.

        Returns:
            The batch with all its items, in the order of their jobs' ids.

        Raises:
            Refusal: Saying which rule was broken at which jobs; nothing has changed then.
        """
        check_author(asked.author)
        rules.check_targets(str(asked.selector), asked.jobs)
        if asked.request_id:
            check_request_id(asked.request_id)
        now = self._clock()
        batch = Batch(
            spec=asked.spec,
            selector=str(asked.selector),
            best_effort=asked.best_effort,
            author=asked.author,
            request_id=asked.request_id or f"server-{uuid.uuid4().hex}",
            digest=rules.digest_of(
                asked.spec, str(asked.selector), asked.jobs, best_effort=asked.best_effort
            ),
            create_time=now,
        )
        # One for all jobs, and unlike any that a caller can have used at one of them.
        update_id = f"batch-{uuid.uuid4().hex}"
        ids = await self._chosen(asked)

        def work(tx: Transaction) -> tuple[BatchNews, bool]:
            existing = tx.batch_by_request(batch.author, batch.request_id)
            if existing is not None:
                rules.check_same(existing, batch.digest)
                return self._news(tx, existing), False
            check_spec(asked.spec, now=now, steps_done=None)
            judged = judge(tx, ids, asked, self._telemetry, now=now, max_open=self._max_open)
            admitted, refusals, items = judged.admitted, judged.refusals, judged.items
            made = replace(batch, total=len(items), refused=len(refusals))
            if asked.validate_only:
                return BatchNews(view_of(made, {}), tuple(items)), False
            made = tx.insert_batch(made, refusals)
            name = batch_name(made.key)
            updates = [
                Update(
                    *(job.id, job.revision + 1, asked.spec, asked.author, update_id, now, name),
                    trace_parent=asked.trace_parent,
                )
                for job in admitted
            ]
            accept_all_in(tx, list(zip(admitted, updates, strict=True)), now)
            accepted = {update.job_id: update for update in updates}
            told = tuple(
                item_of(accepted[item.job_id], item.transitions)
                if item.job_id in accepted
                else item
                for item in items
            )
            states = {UpdateState.PENDING: len(updates)}
            return BatchNews(view_of(made, states), told), True

        news, accepted = await self._store.write(work)
        if accepted:
            expected = {item.job_id: item.transitions for item in news.items if item.is_open}
            self._expected = (news.view.batch.key, expected)
            self._notify(expected)
        return news

    async def get(self, key: int) -> BatchView:
        """A batch.

        Raises:
            Refusal: BATCH_NOT_FOUND.
        """

        def work(tx: Transaction) -> BatchView:
            batch = need_batch(tx, key)
            return view_of(batch, tx.batch_counts([batch])[key])

        return await self._store.read(work)

    async def list(self, *, beyond: int | None, limit: int) -> BatchPage:
        """A page of batches, newest first."""

        def work(tx: Transaction) -> BatchPage:
            found: list[Batch] = []
            place, scanned, more = beyond, 0, True
            size = min(limit + 1, _SCAN)  # enough, where the caller may see all of them
            while more and len(found) <= limit and scanned < MOST_SCANNED:
                chunk = tx.batches(beyond=place, limit=size)
                found += chunk
                place, more = chunk.beyond, chunk.beyond is not None
                scanned, size = scanned + size, _SCAN
            shown = found[:limit]
            counts = tx.batch_counts(shown)
            views = tuple(view_of(batch, counts[batch.key]) for batch in shown)
            return BatchPage(views, shown[-1].key if len(found) > limit else place)

        return await self._store.read(work)

    async def watch(self, key: int) -> AsyncGenerator[BatchNews]:
        """Yields all items of a batch, at most `CHUNK` at a time, then those that change.

        Ends once all its updates are settled. What changes twice between two looks is told once.
        There is always one at least, also where no items are left.

        Raises:
            Refusal: BATCH_NOT_FOUND.
        """
        loop = asyncio.get_running_loop()
        subscription = self._bus.subscribe(JOBS)
        try:
            newest, known = self._expected
            expected = known if newest == key else {}
            followed = await self._store.read(
                lambda tx: Followed(tx, need_batch(tx, key), expected)
            )
            ids = followed.all_jobs()
            if not ids:  # all of them were deleted
                yield BatchNews(followed.view(), ())
            async for news in self._tell(followed, ids):
                yield news
            while followed.view().progress.open:
                if self._bus.draining:
                    raise shutting_down()
                # Also without a word: of what other servers write one may miss some.
                await subscription.wait(_LOOK_AGAIN_SECONDS)
                looked = loop.time()
                changed = await self._store.read(lambda tx: _look(tx, key, followed))
                async for news in self._tell(followed, changed):
                    yield news
                await asyncio.sleep(max(0.0, _COALESCE_SECONDS - (loop.time() - looked)))
        finally:
            subscription.close()

    async def cancel(self, key: int, by: str, reason: str) -> BatchView:
        """Withdraws those updates of a batch that are not in force yet.

        Where a trainer may have one, only that trainer can say whether it came in time.

        Raises:
            Refusal: BATCH_NOT_FOUND, or BATCH_SETTLED.
        """
        if len(reason) > MAX_REASON:
            raise invalid("reason", f"got {len(reason)} characters, at most {MAX_REASON}")
        now = self._clock()
        by_whom = Cancelled(by, reason)
        followed = await self._store.read(lambda tx: Followed(tx, need_batch(tx, key)))
        waiting = [m for m in followed.members.values() if followed.is_open(m)]
        if not waiting:
            raise Refusal(
                Reason.BATCH_SETTLED,
                f"every update of {batch_name(key)} is settled already; to go back, send a new "
                "update",
                metadata={"batch": batch_name(key)},
            )
        for part in _chunks(waiting):
            await self._store.write(partial(_cancel_all, members=part, by=by_whom, now=now))
            self._notify(member.job_id for member in part)
        return await self.get(key)

    async def _chosen(self, asked: BatchSubmission) -> Sequence[str]:
        """Ids of the jobs that are meant, as far as a look without locks can tell.

        Raises:
            Refusal: If they are too many.
        """
        if asked.jobs:
            return asked.jobs

        found = await self._store.read(lambda tx: chosen(tx, asked.selector))
        if len(found) > rules.MAX_JOBS:
            raise invalid(
                "selector",
                f"{asked.selector} chooses {len(found)} jobs, at most {rules.MAX_JOBS} in a "
                "batch; choose fewer, in several batches",
            )
        return found

    def _news(self, tx: Transaction, batch: Batch) -> BatchNews:
        """A batch that is there already, with all its items as they stand now."""
        followed = Followed(tx, batch)
        items = followed.items(tx, self._telemetry, followed.all_jobs())
        return BatchNews(followed.view(), items)

    async def _tell(self, followed: Followed, job_ids: Sequence[str]) -> AsyncGenerator[BatchNews]:
        """The items of some jobs as they stand now."""
        for part in _chunks(job_ids):

            def work(tx: Transaction, part: Sequence[str] = part) -> tuple[BatchItem, ...]:
                return followed.items(tx, self._telemetry, part)

            items = await self._store.read(work)
            yield BatchNews(followed.view(), items)

    def _notify(self, job_ids: Iterable[str]) -> None:
        for job_id in job_ids:
            self._bus.notify(session_topic(job_id))
            self._bus.notify(updates_topic(job_id))
        self._bus.notify(JOBS)


def _look(tx: Transaction, key: int, followed: Followed) -> list[str]:
    """Ids of the jobs where something has changed, if the batch is still there for the caller.

    Raises:
        Refusal: BATCH_NOT_FOUND, one of its jobs was deleted or has left the caller's bounds.
    """
    need_batch(tx, key)
    return followed.look(tx)


def _cancel_all(tx: Transaction, members: Sequence[Member], by: Cancelled, now: datetime) -> None:
    """Withdraws those of a batch's updates that are open still."""
    tx.read_ahead_open(member.job_id for member in members)
    for member in members:
        job = tx.job(member.job_id)
        if job is None or job.key != member.job_key:
            continue  # deleted meanwhile
        for update in tx.open_updates(job):
            if update.revision == member.revision:
                cancel_in(tx, job, update, by, now)


def _chunks(things: Sequence[T]) -> Iterator[Sequence[T]]:
    for start in range(0, len(things), CHUNK):
        yield things[start : start + CHUNK]
