"""Sessions and their messages."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from datetime import datetime
from decimal import Decimal
from functools import cache
from typing import TYPE_CHECKING, Any

from sqlalchemy import bindparam, delete, insert, select, tuple_, update

from analytics_service.chat.conversation import Message, Session
from analytics_service.ports import SessionChange, SessionCursor
from analytics_service.store.errors import etag_mismatch, session_busy, session_not_found
from analytics_service.store.schema import IS_RUNNING_MESSAGE, messages, sessions
from grpc_runtime.sql.prepared import Prepared

if TYPE_CHECKING:
    from sqlalchemy import Connection

_FIELDS = tuple(field.name for field in fields(Session))
_FIXED = frozenset({"id", "principal", "created"})
_MESSAGE_FIELDS = tuple(field.name for field in fields(Message))

_BY_ID = select(*(sessions.c[name] for name in _FIELDS)).where(sessions.c.id == bindparam("id"))
_ONE = Prepared(_BY_ID)
_TO_CHANGE = Prepared(_BY_ID.add_columns(sessions.c.running_message).with_for_update())
_INSERT = Prepared(
    insert(sessions).values({column: bindparam(column.name) for column in sessions.c})
)
_SAVE = Prepared(
    update(sessions)
    .where(sessions.c.id == bindparam("of_session"))
    .values({column: bindparam(column.name) for column in sessions.c if column.name not in _FIXED})
)
_DELETE = Prepared(delete(sessions).where(sessions.c.id == bindparam("id")))

_MESSAGES = select(*(messages.c[name] for name in _MESSAGE_FIELDS)).where(
    messages.c.session_id == bindparam("session_id")
)
_MESSAGE = Prepared(_MESSAGES.where(messages.c.number == bindparam("number")))
_NEXT_MESSAGES = Prepared(
    _MESSAGES.where(messages.c.number > bindparam("after"))
    .order_by(messages.c.number)
    .limit(bindparam("limit"))
)
_LAST_MESSAGES = Prepared(_MESSAGES.order_by(messages.c.number.desc()).limit(bindparam("limit")))
_REQUEST_CANCEL = Prepared(
    update(messages)
    .where(
        messages.c.session_id == bindparam("of_session"),
        messages.c.number == bindparam("of_number"),
        IS_RUNNING_MESSAGE,
    )
    .values(cancel_requested=True)
)
_CANCELS = Prepared(
    select(messages.c.session_id, messages.c.number)
    .where(
        messages.c.replica == bindparam("replica"), IS_RUNNING_MESSAGE, messages.c.cancel_requested
    )
    .order_by(messages.c.session_id, messages.c.number)
)


@cache
def _page(*, from_cursor: bool) -> Prepared:
    """Sessions, the newest first; equally new ones by their ids, downwards too."""
    page = select(*(sessions.c[name] for name in _FIELDS)).where(
        sessions.c.principal == bindparam("principal")
    )
    if from_cursor:
        place = tuple_(
            bindparam("updated", type_=sessions.c.updated.type),
            bindparam("id", type_=sessions.c.id.type),
        )
        page = page.where(tuple_(sessions.c.updated, sessions.c.id) < place)
    newest_first = (sessions.c.updated.desc(), sessions.c.id.desc())
    return Prepared(page.order_by(*newest_first).limit(bindparam("limit")))


@dataclass(frozen=True, slots=True)
class Held:
    """A session that nobody else changes until this transaction ends.

    Attributes:
        session: As stored.
        running: Number of the answer that is running; None: none is.
    """

    session: Session
    running: int | None


def get(connection: Connection, session_id: str) -> Session | None:
    """The session, or None."""
    rows = _ONE.rows(connection, id=session_id)
    return Session(*rows[0]) if rows else None


def hold(connection: Connection, session_id: str) -> Held | None:
    """The session, kept from other writers; None: there is no such session."""
    rows = _TO_CHANGE.rows(connection, id=session_id)
    if not rows:
        return None
    *values, running = rows[0]
    return Held(Session(*values), running)


def hold_existing(connection: Connection, session_id: str, version: int | None = None) -> Held:
    """The session, kept from other writers.

    Raises:
        Refusal: SESSION_NOT_FOUND; ETAG_MISMATCH if `version` is given and not the current.
    """
    held = hold(connection, session_id)
    if held is None:
        raise session_not_found(session_id)
    if version is not None:
        check_version(held.session, version)
    return held


def check_version(session: Session, version: int) -> None:
    """Checks that a held session is as it was when somebody looked at it.

    Raises:
        Refusal: ETAG_MISMATCH.
    """
    if version != session.version:
        raise etag_mismatch(session.id, version, session.version)


def create(connection: Connection, session: Session, running: int | None = None) -> None:
    """Stores a new session. Its id must not be in use.

    Raises:
        sqlalchemy.exc.IntegrityError: If it is.
    """
    _INSERT.run(connection, running_message=running, **_values(session))


def save(connection: Connection, session: Session, running: int | None) -> Session:
    """Stores a held session that has changed; returns it with its new version."""
    session = replace(session, version=session.version + 1)
    values = {name: value for name, value in _values(session).items() if name not in _FIXED}
    _SAVE.run(connection, of_session=session.id, running_message=running, **values)
    return session


def add_costs(
    connection: Connection, held: Held, cost: Decimal, unknown: int, at: datetime
) -> None:
    """Adds to the sums of a held session."""
    session = replace(
        held.session,
        cost=held.session.cost + cost,
        unknown_cost_calls=held.session.unknown_cost_calls + unknown,
        updated=max(held.session.updated, at),
    )
    save(connection, session, held.running)


def listing(
    connection: Connection, principal: str, after: SessionCursor | None, limit: int
) -> list[Session]:
    """A page of a principal's sessions."""
    page = _page(from_cursor=after is not None)
    values: dict[str, Any] = {"principal": principal, "limit": limit}
    if after is not None:
        values |= {"updated": after.updated, "id": after.id}
    return [Session(*row) for row in page.rows(connection, **values)]


def change(
    connection: Connection,
    session_id: str,
    wanted: SessionChange,
    now: datetime,
    version: int | None,
) -> Session:
    """Changes a session; one that is so already stays as it is.

    Raises:
        Refusal: SESSION_NOT_FOUND, ETAG_MISMATCH.
    """
    held = hold_existing(connection, session_id, version)
    before = after = held.session
    if wanted.title is not None:
        after = replace(after, title=wanted.title)
    if wanted.model_id is not None:
        after = replace(after, model_id=wanted.model_id or None)
    if wanted.follow_successor is not None:
        after = replace(after, follow_successor=wanted.follow_successor)
    if after == before:
        return before
    return save(connection, replace(after, updated=max(before.updated, now)), held.running)


def remove(connection: Connection, session_id: str, version: int | None) -> None:
    """Deletes a session with its messages and requests.

    Raises:
        Refusal: SESSION_NOT_FOUND, ETAG_MISMATCH, SESSION_BUSY.
    """
    held = hold_existing(connection, session_id, version)
    if held.running is not None:
        raise session_busy(session_id, held.running)
    _DELETE.run(connection, id=session_id)


def message(connection: Connection, session_id: str, number: int | None) -> Message | None:
    """A message, or None; without a number the newest."""
    if number is None:
        rows = _LAST_MESSAGES.rows(connection, session_id=session_id, limit=1)
    else:
        rows = _MESSAGE.rows(connection, session_id=session_id, number=number)
    return Message(*rows[0]) if rows else None


def next_messages(connection: Connection, session_id: str, after: int, limit: int) -> list[Message]:
    """Messages with a number above `after`, in order."""
    rows = _NEXT_MESSAGES.rows(connection, session_id=session_id, after=after, limit=limit)
    return [Message(*row) for row in rows]


def last_messages(connection: Connection, session_id: str, limit: int) -> list[Message]:
    """The newest messages, in order."""
    rows = _LAST_MESSAGES.rows(connection, session_id=session_id, limit=limit)
    return [Message(*row) for row in reversed(rows)]


def request_cancel(connection: Connection, session_id: str, number: int) -> Message | None:
    """Marks a running answer as one to stop; returns the message as it stands."""
    _REQUEST_CANCEL.run(connection, of_session=session_id, of_number=number)
    return message(connection, session_id, number)


def cancels_requested(connection: Connection, replica: str) -> list[tuple[str, int]]:
    """Session and number of a replica's running answers that are to stop."""
    return [(row[0], row[1]) for row in _CANCELS.rows(connection, replica=replica)]


def _values(session: Session) -> dict[str, Any]:
    return {name: getattr(session, name) for name in _FIELDS}
