"""Use case: what was asked of any job, in the order of time."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from control_plane.domain.access import EVERYTHING, Scope
from control_plane.domain.selector import ANYTHING, Selector
from control_plane.services.records import Place, Scanned

if TYPE_CHECKING:
    from control_plane.domain.update import Update, UpdateState
    from control_plane.services.ports import Store, Transaction

_CHUNK = 500
MOST_SCANNED = 10_000
"""Updates looked at for one page, so that it costs the same however few of them are wanted."""
_BEGINNING = datetime(1970, 1, 1, tzinfo=UTC)
_END = datetime(9999, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class HistoryQuery:
    """Which updates; by default all.

    Attributes:
        selector: Of the jobs.
        states: In one of these; none: whichever.
        author: Whom they are from; empty: whomever.
        start: Created at this time or later; None: whenever.
        end: Created before this time; None: whenever.
        newest_first: The order.
        scope: The jobs that the caller may see.
    """

    selector: Selector = ANYTHING
    states: frozenset[UpdateState] = frozenset()
    author: str = ""
    start: datetime | None = None
    end: datetime | None = None
    newest_first: bool = True
    scope: Scope = EVERYTHING

    @property
    def is_choosy(self) -> bool:
        """Whether more is looked at than is wanted."""
        return bool(self.selector.requirements or self.states or not self.scope.is_everything)

    @property
    def is_plain(self) -> bool:
        """Whether neither time nor author matters."""
        return not self.author and self.start is None and self.end is None

    def wants_time_and_author(self, update: Update) -> bool:
        """Whether an update has the time and author that are wanted."""
        return (
            (not self.author or update.author == self.author)
            and (self.start is None or update.create_time >= self.start)
            and (self.end is None or update.create_time < self.end)
        )

    def wants(self, scanned: Scanned) -> bool:
        """Whether an update of the right time and author is wanted."""
        return (
            (not self.states or scanned.state in self.states)
            and self.selector.matches(scanned.labels)
            and self.scope.has(scanned.job_id, scanned.labels)
        )


@dataclass(frozen=True, slots=True)
class HistoryPage:
    """A page of updates; perhaps few or none though there are more beyond `next_beyond`."""

    updates: tuple[Update, ...]
    next_beyond: Place | None


class HistoryService:
    """Lists updates across jobs."""

    def __init__(self, store: Store) -> None:
        """Takes its parts."""
        self._store = store

    async def list(self, query: HistoryQuery, *, beyond: Place | None, limit: int) -> HistoryPage:
        """A page of updates, in the order of their times."""
        start, end = query.start or _BEGINNING, query.end or _END
        begin = beyond or Place(end if query.newest_first else start, -1, -1)
        until = start if query.newest_first else end

        def work(tx: Transaction) -> HistoryPage:
            found: list[Place] = []
            place, scanned = begin, 0
            while True:
                chunk = tx.scan_updates(
                    newest_first=query.newest_first,
                    beyond=place,
                    until=until,
                    author=query.author,
                    limit=_CHUNK if query.is_choosy else limit - len(found) + 1,
                )
                for each in chunk:
                    if len(found) == limit or scanned == MOST_SCANNED:
                        return _page(tx, found, place)
                    place, scanned = each.place, scanned + 1
                    if query.wants(each):
                        found.append(place)
                if len(chunk) < _CHUNK or not query.is_choosy:
                    return _page(tx, found, None)

        return await self._store.read(work)


def _page(tx: Transaction, found: list[Place], next_beyond: Place | None) -> HistoryPage:
    places = [(place.job_key, place.revision) for place in found]
    updates = tx.updates_at(places)
    return HistoryPage(tuple(updates[place] for place in places), next_beyond)
