"""Durable state: one contract (`analytics_service.ports.Store`), kept over SQL.

=============  ==================================================================================
``store``      :class:`SqlStore`: the contract, each method one transaction.
``sessions``   sessions and messages.
``turns``      a question and the answer that is being got.
``calls``      calls to providers: recorded, then settled.
``budgets``    limits, and what counts against them.
``recovery``   what dead replicas have left.
``usage``      pages and sums of usage.
``retention``  deleting what is old.
``audit``      the record of changes and of refused calls.
``schema``     the tables, which ``migrations`` makes.
=============  ==================================================================================
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from analytics_service.store import migrations
from analytics_service.store.store import SqlStore
from grpc_runtime.sql import open_database

if TYPE_CHECKING:
    from analytics_service.ports import Clock, Store
    from grpc_runtime.audit.log import EntryNow

__all__ = ["open_store"]


def _now() -> datetime:
    return datetime.now(UTC)


def _nothing() -> None:
    return None


async def open_store(
    address: str | Path,
    *,
    clock: Clock = _now,
    entry_now: EntryNow = _nothing,
    noticing: Callable[[], AbstractContextManager[None]] = nullcontext,
    patience: float = 0.0,
) -> Store:
    """Opens the store, makes it if there is none, and brings its tables up to date.

    Args:
        address: A path, sqlite:///state.db (relative), sqlite:////var/lib/state.db, or
            postgresql://user:password@host:port/name. An SQLite file belongs to one process
            at a time; a PostgreSQL database may be shared by replicas.
        clock: Tells which month is the present one, whose usage is never pruned.
        entry_now: Tells what is to be recorded of the call that is being served.
        noticing: Looks at what goes wrong in its block, which uses the database.
        patience: Seconds to wait for a PostgreSQL server that does not answer.

    Returns:
        The store; to be closed.

    Raises:
        grpc_runtime.sql.DatabaseOpenError: If it can not be opened.
    """
    database = await open_database(
        address, migrations=migrations, exclusive_owner="analytics service", patience=patience
    )
    return SqlStore(database, clock, entry_now, noticing)
