"""The log of what happened, which watches are fed from and which wakes other replicas.

Positions are given in the order in which the events become visible, so that whoever has
read up to one never finds an older one later. SQLite has one writer at a time. In
PostgreSQL writers would overtake one another between the position and the commit, so a
trigger on the table (see the migration) has each take one lock for all of the database
first, which it keeps until it has committed. Events are therefore held back until the end
of their transaction, when all other locks are taken: the lock is held for no longer than
the commit takes, and whoever holds it waits for nobody.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from sqlalchemy import Connection, bindparam, func, select

from control_plane.services.records import Event
from control_plane.store.bulk import write_rows
from control_plane.store.queries import Queries
from control_plane.store.schema import events
from grpc_runtime.sql.columns import microseconds
from grpc_runtime.sql.prepared import Prepared

CHANNEL = "midcourse_events"
"""Where PostgreSQL tells of a commit with events; the trigger has the same name."""

_FIELDS = tuple(field.name for field in fields(Event))
_GIVEN = ("kind", "job_id", "job_uid", "revision", "time", "origin")

_AFTER = (
    select(*(events.c[name] for name in _FIELDS))
    .where(events.c.position > bindparam("after"))
    .order_by(events.c.position)
    .limit(bindparam("limit"))
)
_PAGE = Prepared(_AFTER)
_FOREIGN = Prepared(_AFTER.where(events.c.origin != bindparam("own")))
# Two subqueries, since either end is one look into the index only when asked for alone.
_SPAN = Prepared(
    select(
        select(func.min(events.c.position)).scalar_subquery(),
        select(func.max(events.c.position)).scalar_subquery(),
    )
)


class EventQueries(Queries):
    """The part of a transaction that is about events.

    Attributes:
        appended: The events of this transaction.
    """

    def __init__(self, connection: Connection, *, origin: str = "", writing: bool) -> None:
        """See `Queries`."""
        super().__init__(connection, origin=origin, writing=writing)
        self.appended: list[Event] = []
        self._written = 0

    def append_event(self, event: Event) -> None:
        """Stores an event at the next position."""
        self.appended.append(event)

    def write_events(self) -> None:
        """Writes all that is held back, events last. Nothing else must be locked after it."""
        rows = [
            (e.kind.value, e.job_id, e.job_uid, e.revision, microseconds(e.time), self._origin)
            for e in self.appended[self._written :]
        ]
        self._written = len(self.appended)
        write_rows(self._connection, events, _GIVEN, rows, replace=False)

    def events(self, *, after: int, limit: int) -> list[Event]:
        """Events after a position, in order."""
        self.write_events()
        return [Event(*row) for row in _PAGE.rows(self._connection, after=after, limit=limit)]

    def foreign_events(self, *, after: int, limit: int) -> tuple[list[Event], tuple[int, int]]:
        """Events of other replicas after a position, in order; and `event_span`."""
        span = _SPAN.ask(self._connection)
        rows = _FOREIGN.rows(self._connection, after=after, limit=limit, own=self._origin)
        return [Event(*row) for row in rows], _span(span())

    def event_span(self) -> tuple[int, int]:
        """(oldest position that can be gone on from, newest position).

        Going on from P needs every event after P, so the oldest such position is the
        newest one that was pruned, or 0.
        """
        self.write_events()
        return _span(_SPAN.rows(self._connection))


def _span(rows: Sequence[Any]) -> tuple[int, int]:
    [(first, last)] = rows
    # Pruning leaves the newest event, so that there is none only where there never was one.
    return (0, 0) if first is None else (first - 1, last)
