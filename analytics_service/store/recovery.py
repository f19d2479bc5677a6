"""Replicas that are alive, and what dead ones have left."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import TYPE_CHECKING, Any

from sqlalchemy import ColumnElement, bindparam, delete, select, text, update

from analytics_service.chat.conversation import ErrorInfo, MessageState
from analytics_service.errors import Reason
from analytics_service.store import budgets, calls, sessions
from analytics_service.store.schema import (
    IS_RUNNING_CALL,
    IS_RUNNING_MESSAGE,
    messages,
    replicas,
    usage,
)
from analytics_service.usage.records import CallOutcome, UsageRecord
from grpc_runtime.sql.prepared import Prepared

if TYPE_CHECKING:
    from sqlalchemy import Connection

_UNAVAILABLE = 14
"""gRPC's status code: the request may be made again."""
_CALL_ERROR = "the service's process ended in the middle of the call"
_UNKNOWN_REASON = "the service's process ended before the provider had counted the tokens"
_ANSWER_ERROR = ErrorInfo(
    _UNAVAILABLE,
    Reason.CHAT_INTERRUPTED,
    "the service's process ended in the middle of the answer; ask again",
)

_BEAT = Prepared(
    text(
        "INSERT INTO replicas (id, beat) VALUES (:replica, :now) "
        "ON CONFLICT (id) DO UPDATE SET beat = excluded.beat"
    ).bindparams(bindparam("now", type_=replicas.c.beat.type))
)


_BEATS = Prepared(select(replicas.c.id, replicas.c.beat))


def _of_dead(replica: ColumnElement[str]) -> ColumnElement[bool]:
    return (replica != bindparam("me")) & replica.not_in(select(replicas.c.id))


# Not sorted: SQLite would rather look at everything in that order than sort these few.
_CALLS = Prepared(calls.RECORD.where(IS_RUNNING_CALL, _of_dead(usage.c.replica)))
_ANSWERS = Prepared(
    select(messages.c.session_id, messages.c.number).where(
        IS_RUNNING_MESSAGE, _of_dead(messages.c.replica)
    )
)
_INTERRUPT = Prepared(
    update(messages)
    .where(
        messages.c.session_id == bindparam("of_session"),
        messages.c.number == bindparam("of_number"),
        IS_RUNNING_MESSAGE,
    )
    .values(state=bindparam("new_state"), ended=bindparam("now"), error=bindparam("why"))
)
_FORGET = Prepared(
    delete(replicas).where(
        replicas.c.id == bindparam("of_replica"), replicas.c.beat == bindparam("last")
    )
)


def beat(connection: Connection, replica: str, now: datetime) -> None:
    """Records that a replica is alive."""
    _BEAT.run(connection, replica=replica, now=now)


def beats(connection: Connection) -> dict[str, datetime]:
    """The last beat of each replica."""
    return dict(_BEATS.rows(connection))


def recover(
    connection: Connection, replica: str, silent: Mapping[str, datetime], now: datetime
) -> int:
    """Settles what dead replicas left; returns how many calls and answers that were."""
    # Mostly there is nothing, and then nobody has to wait for anybody.
    if not (silent or _CALLS.rows(connection, me=replica) or _ANSWERS.rows(connection, me=replica)):
        return 0
    # From here on nobody else settles a call: another replica that recovers comes before
    # or after, and a call that is ending has ended, or ends after and finds it settled.
    budgets.guard(connection, alone=True)
    for each, last in silent.items():
        _FORGET.run(connection, of_replica=each, last=last)  # unless it has beaten since
    found = [calls.record(row) for row in _CALLS.rows(connection, me=replica)]
    return _settle(connection, found, _ANSWERS.rows(connection, me=replica), now)


def _settle(
    connection: Connection, found: Sequence[UsageRecord], answers: Sequence[Any], now: datetime
) -> int:
    # Sessions that are left: their usage may have outlived them.
    places = {call.session_id for call in found} | {session_id for session_id, _ in answers}
    held = {each: sessions.hold(connection, each) for each in sorted(places)}
    for call in found:
        calls.settle(connection, call, _interrupted(call))
    unknown = Counter(call.session_id for call in found)
    interrupted = {
        session_id
        for session_id, number in answers
        if _INTERRUPT.run(
            connection,
            of_session=session_id,
            of_number=number,
            new_state=MessageState.INTERRUPTED,
            now=now,
            why=_ANSWER_ERROR,
        )
    }
    for session_id, one in held.items():
        if one is not None and (session_id in interrupted or session_id in unknown):
            session = replace(
                one.session,
                unknown_cost_calls=one.session.unknown_cost_calls + unknown[session_id],
                updated=max(one.session.updated, now),
            )
            running = None if session_id in interrupted else one.running
            sessions.save(connection, session, running)
    # A session has at most one answer that is running.
    return len(found) + len(interrupted)


def _interrupted(call: UsageRecord) -> UsageRecord:
    # When it came to its end is as unknown as its cost.
    return replace(
        call,
        outcome=CallOutcome.INTERRUPTED,
        error=_CALL_ERROR,
        cost=None,
        unknown_reason=_UNKNOWN_REASON,
    )
