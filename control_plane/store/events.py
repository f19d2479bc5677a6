"""The log of what happened, which watches are fed from."""

from __future__ import annotations

from dataclasses import fields

from sqlalchemy import bindparam, func, insert, select

from control_plane.services.ports import Event
from control_plane.store.queries import Queries
from control_plane.store.schema import events
from grpc_runtime.sql.prepared import Prepared

_FIELDS = tuple(field.name for field in fields(Event))
_GIVEN = tuple(name for name in _FIELDS if name != "position")

_INSERT = Prepared(insert(events).values({name: bindparam(name) for name in _GIVEN}))
_PAGE = Prepared(
    select(*(events.c[name] for name in _FIELDS))
    .where(events.c.position > bindparam("after"))
    .order_by(events.c.position)
    .limit(bindparam("limit"))
)
# Two subqueries, since either end is one look into the index only when asked for alone.
_SPAN = Prepared(
    select(
        select(func.min(events.c.position)).scalar_subquery(),
        select(func.max(events.c.position)).scalar_subquery(),
    )
)


class EventQueries(Queries):
    """The part of a transaction that is about events."""

    def append_event(self, event: Event) -> None:
        """Stores an event at the next position."""
        _INSERT.run(self._connection, **{name: getattr(event, name) for name in _GIVEN})

    def events(self, *, after: int, limit: int) -> list[Event]:
        """Events after a position, in order."""
        return [Event(*row) for row in _PAGE.rows(self._connection, after=after, limit=limit)]

    def event_span(self) -> tuple[int, int]:
        """(oldest position that can be gone on from, newest position).

        Going on from P needs every event after P, so the oldest such position is the
        newest one that was pruned, or 0.
        """
        [(first, last)] = _SPAN.rows(self._connection)
        # Pruning leaves the newest event, so that there is none only where there never was one.
        return (0, 0) if first is None else (first - 1, last)
