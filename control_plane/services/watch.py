"""Use case: follow jobs as they change, from the store's record of events."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import TYPE_CHECKING

from control_plane.domain.access import EVERYTHING, Scope
from control_plane.domain.errors import Reason, Refusal, shutting_down
from control_plane.domain.update import Update
from control_plane.services.bus import JOBS
from control_plane.services.records import Event, EventKind
from control_plane.services.views import JobView

if TYPE_CHECKING:
    from control_plane.domain.selector import Selector
    from control_plane.services.jobs import JobService
    from control_plane.services.ports import Store, Transaction, WakeupBus
    from control_plane.services.telemetry import TelemetryHub

_CHUNK = 200
_BOOKMARK_SECONDS = 30.0


class WatchKind(StrEnum):
    """What a watch tells of."""

    SNAPSHOT = "snapshot"
    CREATED = "created"
    MODIFIED = "modified"
    DELETED = "deleted"
    PROGRESS = "progress"
    BOOKMARK = "bookmark"


@dataclass(frozen=True, slots=True)
class WatchItem:
    """One thing that a watch tells.

    Attributes:
        kind: What happened.
        position: Where to go on after it; None within a snapshot.
        view: The job as it is now; None where it is gone or with a bookmark.
        job_id: The job; empty with a bookmark.
        job_uid: Which of the jobs that had this id.
        update: The update that changed, as it is now; None: none did.
        time: When; None in a snapshot.
    """

    kind: WatchKind
    position: int | None
    view: JobView | None = None
    job_id: str = ""
    job_uid: str = ""
    update: Update | None = None
    time: datetime | None = None


_Hydrated = tuple[Event, JobView | None, Update | None]


class WatchService:
    """Streams jobs as they change.

    Each watcher reads the store at its own pace, so that a slow one holds up nobody.
    """

    def __init__(
        self, store: Store, bus: WakeupBus, jobs: JobService, telemetry: TelemetryHub
    ) -> None:
        """Takes its parts."""
        self._store = store
        self._bus = bus
        self._jobs = jobs
        self._telemetry = telemetry
        self.count = 0
        """Watches under way."""

    async def watch(
        self,
        selector: Selector,
        *,
        job_id: str = "",
        position: int | None = None,
        progress_interval: float | None = None,
        scope: Scope = EVERYTHING,
    ) -> AsyncGenerator[WatchItem]:
        """Yields a snapshot (unless it goes on from a position), then every change in order.

        Args:
            selector: Which jobs.
            job_id: Only this job; empty: all.
            position: Go on after this; None: begin with a snapshot.
            progress_interval: Seconds between progress items; None: none.
            scope: The jobs that the caller may see.

        Raises:
            Refusal: POSITION_GONE.
        """

        def wanted(view: JobView) -> bool:
            return (not job_id or view.job.id == job_id) and selector.matches(view.job.selectable())

        shown = _Shown(before=position is not None, job_id=job_id, scope=scope)
        seen_version = self._telemetry.version
        elsewhere: dict[int, object] = {}
        subscription = self._bus.subscribe(JOBS)
        self.count += 1
        try:
            loop = asyncio.get_running_loop()
            # Who goes on from a position where nothing has happened since is to hear that it may.
            bookmark_due = loop.time()
            if position is None:
                position = await self._newest()
                async for view in self._all(wanted):
                    shown.note(view.job.uid, shown=True)
                    yield WatchItem(WatchKind.SNAPSHOT, None, view, view.job.id, view.job.uid)
                yield WatchItem(WatchKind.BOOKMARK, position)
                bookmark_due = loop.time() + _BOOKMARK_SECONDS
            progress_due = loop.time() + (progress_interval or 0.0)
            while True:
                if self._bus.draining:
                    raise shutting_down()
                hydrated = await self._events(position)
                for event, now_is, update in hydrated:
                    position = event.position
                    item = _item(event, now_is, update, shown, wanted)
                    if item is not None:
                        bookmark_due = loop.time() + _BOOKMARK_SECONDS
                        yield item
                now = loop.time()
                if now >= bookmark_due:
                    bookmark_due = now + _BOOKMARK_SECONDS
                    yield WatchItem(WatchKind.BOOKMARK, position)
                if progress_interval is not None and now >= progress_due:
                    progress_due = now + progress_interval
                    since, seen_version = seen_version, self._telemetry.version
                    # What other servers have heard does not move the version of this one.
                    if seen_version != since or self._store.is_shared:
                        async for view in self._moved(wanted, job_id, since, elsewhere):
                            yield WatchItem(
                                WatchKind.PROGRESS, position, view, view.job.id, view.job.uid
                            )
                if len(hydrated) < _CHUNK:
                    due = bookmark_due
                    if progress_interval is not None:
                        due = min(due, progress_due)
                    await subscription.wait(max(0.0, due - loop.time()))
        finally:
            self.count -= 1
            subscription.close()

    async def _newest(self) -> int:
        return await self._store.read(lambda tx: tx.event_span()[1])

    async def _all(self, wanted: Callable[[JobView], bool]) -> AsyncIterator[JobView]:
        after: str | None = ""
        while after is not None:

            def work(tx: Transaction, after: str = after) -> tuple[list[JobView], str | None]:
                jobs = tx.jobs(after=after, limit=_CHUNK)
                return self._jobs.views(tx, jobs), jobs.beyond

            views, after = await self._store.read(work)
            for view in views:
                if wanted(view):
                    yield view

    async def _moved(
        self,
        wanted: Callable[[JobView], bool],
        job_id: str,
        since: int,
        elsewhere: dict[int, object],
    ) -> AsyncIterator[JobView]:
        """Jobs whose telemetry is newer than a version.

        Args:
            wanted: Which jobs.
            job_id: Only this job; empty: all.
            since: The version.
            elsewhere: How far those were that are heard by other servers; is brought up to date.
        """
        if job_id:

            def one(tx: Transaction) -> list[JobView]:
                job = tx.job(job_id)
                return [self._jobs.view(tx, job)] if job is not None else []

            views = await self._store.read(one)
            found = [view for view in views if wanted(view)]
        else:
            found = [view async for view in self._all(wanted)]
        for gone in elsewhere.keys() - {view.job.key for view in found}:
            del elsewhere[gone]
        for view in found:
            live = self._telemetry.current(view.job)
            if live is not None:
                moved = live.version > since
            else:
                now = view.progress, [(m.name, m.step, m.time) for m in view.metrics]
                moved = elsewhere.get(view.job.key, now) != now
                elsewhere[view.job.key] = now
            if moved:
                yield view

    async def _events(self, position: int) -> list[_Hydrated]:
        def work(tx: Transaction) -> list[_Hydrated]:
            oldest, newest = tx.event_span()
            if not oldest <= position <= newest:
                raise Refusal(
                    Reason.POSITION_GONE,
                    "the position to go on from is not kept any more; begin again without a "
                    "position, with a snapshot",
                )
            events = tx.events(after=position, limit=_CHUNK)
            jobs = {job.id: job for job in tx.jobs_named({event.job_id for event in events})}
            changed = [(jobs[e.job_id].key, e.revision) for e in events if e.job_id in jobs]
            tx.read_ahead_updates([(key, revision) for key, revision in changed if revision])
            views = {view.job.id: view for view in self._jobs.views(tx, list(jobs.values()))}
            hydrated: list[_Hydrated] = []
            for event in events:
                job = jobs.get(event.job_id)
                if job is None or job.uid != event.job_uid:
                    hydrated.append((event, None, None))
                    continue
                update = tx.update(job, event.revision) if event.revision else None
                hydrated.append((event, views[job.id], update))
            return hydrated

        return await self._store.read(work)


class _Shown:
    """Which jobs a watcher has been shown, as far as is known."""

    def __init__(self, *, before: bool, job_id: str, scope: Scope) -> None:
        """`before`: it has watched before, and may have been shown any of its jobs then."""
        self._before = before
        self._job_id = job_id
        self._scope = scope
        self._known: dict[str, bool] = {}

    def note(self, uid: str, *, shown: bool) -> None:
        """From now on it is known whether the watcher has the job."""
        self._known[uid] = shown

    def forget(self, uid: str) -> None:
        """There will be no more events of the job."""
        self._known.pop(uid, None)

    def maybe(self, event: Event) -> bool:
        """Whether the watcher may have the job that an event is about.

        Raises:
            Refusal: POSITION_GONE, that can not be told any more, and a guess would either leave
                out what it has, or tell of jobs that are none of its business.
        """
        known = self._known.get(event.job_uid)
        if known is not None:
            return known
        if event.kind is EventKind.CREATED or not self._before:
            return False
        if self._job_id not in ("", event.job_id) or not self._scope.names(event.job_id):
            return False
        if not self._scope.goes_by_labels:
            return True
        if event.kind is EventKind.DELETED:
            raise Refusal(
                Reason.POSITION_GONE,
                "jobs were deleted since that position, and whether the caller could see them can "
                "not be told any more; begin again without a position, with a snapshot",
            )
        return False

    def may_have_left(self, event: Event) -> bool:
        """Whether a job that is not there for the watcher is one that was, and left its scope."""
        return self._scope.goes_by_labels and self._known.get(event.job_uid, False)


def _item(
    event: Event,
    view: JobView | None,
    update: Update | None,
    shown: _Shown,
    wanted: Callable[[JobView], bool],
) -> WatchItem | None:
    """What a watcher is told of an event; None: nothing."""
    if view is not None and wanted(view):
        shown.note(event.job_uid, shown=True)
        kind = WatchKind.CREATED if event.kind is EventKind.CREATED else WatchKind.MODIFIED
        return WatchItem(
            kind, event.position, view, event.job_id, event.job_uid, update, event.time
        )
    if view is None and event.kind is not EventKind.DELETED and not shown.may_have_left(event):
        # Of a job that is gone by now, the changes before its deletion can not be shown.
        return None
    told = shown.maybe(event)
    if event.kind is EventKind.DELETED:
        shown.forget(event.job_uid)
    else:
        shown.note(event.job_uid, shown=False)
    if not told:
        return None
    # Gone, or no longer selected.
    return WatchItem(
        WatchKind.DELETED,
        event.position,
        job_id=event.job_id,
        job_uid=event.job_uid,
        time=event.time,
    )
