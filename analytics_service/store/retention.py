"""Deleting what is old, a bounded number of rows at a time."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING

from sqlalchemy import bindparam, delete, select

from analytics_service.store.schema import IS_RUNNING_CALL, sessions, usage, windows
from analytics_service.usage.budgets import span
from analytics_service.usage.records import Period
from grpc_runtime.sql.prepared import Prepared

if TYPE_CHECKING:
    from sqlalchemy import Connection

# What somebody is just changing is not old: others do not wait here, nor make wait.
_OLD_SESSIONS = Prepared(
    select(sessions.c.id)
    .where(sessions.c.updated < bindparam("before"), sessions.c.running_message.is_(None))
    .order_by(sessions.c.updated)
    .limit(bindparam("limit"))
    .with_for_update(skip_locked=True)
)
_DELETE_SESSION = Prepared(delete(sessions).where(sessions.c.id == bindparam("id")))
_OLD_USAGE = Prepared(
    select(usage.c.id)
    .where(usage.c.time < bindparam("before"), ~IS_RUNNING_CALL)
    .order_by(usage.c.time)
    .limit(bindparam("limit"))
    .with_for_update(skip_locked=True)
)
_DELETE_USAGE = Prepared(delete(usage).where(usage.c.id == bindparam("id")))
_DELETE_WINDOWS = Prepared(delete(windows).where(windows.c.start < bindparam("before")))


def prune(
    connection: Connection,
    *,
    sessions_before: datetime | None,
    usage_before: datetime | None,
    limit: int,
    now: datetime,
) -> int:
    """Deletes at most `limit` old sessions and usage records each; returns how many.

    Usage of the present month and calls that are running stay. A budget's windows go with
    the usage that they were made of.
    """
    count = 0
    if sessions_before is not None:
        old = _OLD_SESSIONS.rows(connection, before=sessions_before, limit=limit)
        count += sum(_DELETE_SESSION.run(connection, id=each) for (each,) in old)
    if usage_before is not None:
        month, _ = span(Period.MONTH, now)
        before = min(usage_before, month)
        old = _OLD_USAGE.rows(connection, before=before, limit=limit)
        count += sum(_DELETE_USAGE.run(connection, id=each) for (each,) in old)
        _DELETE_WINDOWS.run(connection, before=before)
    return count
