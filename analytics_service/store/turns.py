"""Turns: a question and the answer that is being got, recorded and ended."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any

from sqlalchemy import bindparam, insert, select, text, update

from analytics_service.chat.conversation import Message, MessageState, Session
from analytics_service.ports import NewTurn, TurnBegun
from analytics_service.store import budgets, calls, sessions
from analytics_service.store.errors import (
    message_not_found,
    request_id_reused,
    session_busy,
)
from analytics_service.store.schema import IS_RUNNING_MESSAGE, messages, requests
from analytics_service.usage.records import UsageRecord
from grpc_runtime.sql.prepared import Prepared

if TYPE_CHECKING:
    from sqlalchemy import Connection

_MESSAGE_FIELDS = tuple(field.name for field in fields(Message))

_QUESTION = "question_"
_ANSWER = "answer_"
_INSERT_BOTH = Prepared(
    insert(messages).values(
        [
            {
                column.name: bindparam(f"{prefix}{column.name}", type_=column.type)
                for column in messages.c
            }
            for prefix in (_QUESTION, _ANSWER)
        ]
    )
)
_END = Prepared(
    update(messages)
    .where(
        messages.c.session_id == bindparam("of_session"),
        messages.c.number == bindparam("of_number"),
        IS_RUNNING_MESSAGE,
    )
    .values(
        {
            name: bindparam(name)
            for name in ("state", "parts", "ended", "model", "citations", "error")
        }
    )
)
# The same words in both databases, but SQLAlchemy has them in each dialect for itself.
_CLAIM = Prepared(
    text(
        "INSERT INTO requests (principal, request_id, fingerprint, session_id, message_number) "
        "VALUES (:principal, :request_id, :fingerprint, :session_id, :message_number) "
        "ON CONFLICT (principal, request_id) DO NOTHING"
    )
)
_FIND = Prepared(
    select(requests.c.fingerprint, *(messages.c[name] for name in _MESSAGE_FIELDS))
    .join_from(
        requests,
        messages,
        (messages.c.session_id == requests.c.session_id)
        & (messages.c.number == requests.c.message_number),
    )
    .where(
        requests.c.principal == bindparam("principal"),
        requests.c.request_id == bindparam("request_id"),
    )
)


class RepeatedError(Exception):
    """The request was made before; `replay` tells what it led to."""


def find(connection: Connection, principal: str, request_id: str) -> tuple[str, Message] | None:
    """Fingerprint and answer of a request that was made before, or None."""
    rows = _FIND.rows(connection, principal=principal, request_id=request_id)
    return (rows[0][0], Message(*rows[0][1:])) if rows else None


def replay(connection: Connection, turn: NewTurn) -> TurnBegun | None:
    """What a request led to that was made before; None: it was not, or all is deleted.

    Raises:
        Refusal: REQUEST_ID_REUSED.
    """
    found = find(connection, turn.session.principal, turn.request_id)
    if found is None:
        return None
    fingerprint, answer = found
    if fingerprint != turn.fingerprint:
        raise request_id_reused(turn.request_id)
    session = sessions.get(connection, answer.session_id)
    return None if session is None else TurnBegun(session, answer, replayed=True)


def begin(connection: Connection, turn: NewTurn, call: UsageRecord | None) -> TurnBegun:
    """Records question, running answer and the first call with its reservation.

    Raises:
        Refusal: SESSION_NOT_FOUND, SESSION_BUSY, ETAG_MISMATCH, BUDGET_EXCEEDED.
        RepeatedError: The transaction is to be undone; see `replay`.
        MissingWindowsError: See `budgets.reserve`.
    """
    if turn.answer.state is not MessageState.RUNNING:
        raise ValueError(f"an answer begins in state running, got {turn.answer.state}")
    # Locks are taken in this order everywhere: decisions, session, calls, messages, budgets.
    if call is not None:
        budgets.guard(connection, alone=False)
    session = _new_session(connection, turn) if turn.is_new else _old_session(connection, turn)
    question = replace(turn.question, session_id=session.id, number=session.message_count - 1)
    answer = replace(turn.answer, session_id=session.id, number=session.message_count)
    _INSERT_BOTH.run(
        connection,
        **_row(_QUESTION, question, None),
        **_row(_ANSWER, answer, turn.replica),
    )
    if call is not None:
        calls.begin(connection, replace(call, session_id=session.id, message_number=answer.number))
    return TurnBegun(session, answer, replayed=False)


def end(connection: Connection, answer: Message) -> Message:
    """Records the end of an answer that is running; returns it as stored.

    Raises:
        Refusal: MESSAGE_NOT_FOUND.
    """
    if answer.state is MessageState.RUNNING or answer.ended is None:
        raise ValueError(f"an answer ends in another state than running, got {answer.state}")
    held = sessions.hold(connection, answer.session_id)
    ended = _END.run(
        connection,
        of_session=answer.session_id,
        of_number=answer.number,
        state=answer.state,
        parts=answer.parts,
        ended=answer.ended,
        model=answer.model,
        citations=answer.citations,
        error=answer.error,
    )
    if held is not None and ended:
        updated = max(held.session.updated, answer.ended)
        sessions.save(connection, replace(held.session, updated=updated), running=None)
    stored = sessions.message(connection, answer.session_id, answer.number)
    if stored is None:
        raise message_not_found(answer.session_id, answer.number)
    return stored


def _new_session(connection: Connection, turn: NewTurn) -> Session:
    session = replace(turn.session, message_count=2)
    # First: the repetition may have the same session.
    _claim(connection, turn, session)
    sessions.create(connection, session, running=2)
    return session


def _old_session(connection: Connection, turn: NewTurn) -> Session:
    held = sessions.hold_existing(connection, turn.session.id)
    session = replace(
        held.session,
        title=turn.session.title,
        model_id=turn.session.model_id,
        follow_successor=turn.session.follow_successor,
        updated=max(held.session.updated, turn.answer.created),
        message_count=held.session.message_count + 2,
    )
    _claim(connection, turn, session)
    if held.running is not None:
        raise session_busy(session.id, held.running)
    # Else the turn would undo what has changed, or know nothing of an answer that has ended.
    sessions.check_version(held.session, turn.session.version)
    return sessions.save(connection, session, running=session.message_count)


def _claim(connection: Connection, turn: NewTurn, session: Session) -> None:
    """Takes the request's id. Waits for another request that is just doing so."""
    if turn.request_id and not _CLAIM.run(
        connection,
        principal=turn.session.principal,
        request_id=turn.request_id,
        fingerprint=turn.fingerprint,
        session_id=session.id,
        message_number=session.message_count,
    ):
        raise RepeatedError


def _row(prefix: str, message: Message, replica: str | None) -> dict[str, Any]:
    row = {f"{prefix}{name}": getattr(message, name) for name in _MESSAGE_FIELDS}
    return row | {f"{prefix}replica": replica, f"{prefix}cancel_requested": False}
