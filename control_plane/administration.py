"""Tokens without a server: for the first one, and for who has lost the last.

Whoever may read and write the database may do everything anyway.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

from control_plane.server import token_service, utc_now
from control_plane.services.audit import AuditedStore
from control_plane.store import open_store
from grpc_runtime.audit.log import Entry
from grpc_runtime.audit.records import AuditRecord

if TYPE_CHECKING:
    from control_plane.services.access import TokenService

CREATOR = "database"
"""Who made a token that was made so."""


@contextlib.asynccontextmanager
async def administering(database: str) -> AsyncIterator[TokenService]:
    """Opens a database for its tokens while the block runs; makes it if there is none.

    An SQLite file belongs to one process at a time: the server must not run.

    Raises:
        StoreError: If it can not be opened.
    """
    store = await open_store(database)
    try:
        yield token_service(AuditedStore(store, utc_now, _entry), utc_now)
    finally:
        await store.close()


def _entry() -> Entry:
    return Entry(
        AuditRecord(
            time=utc_now(),
            principal=CREATOR,
            peer="",
            method="midcourse token",
            resource="tokens",
            summary="on the database itself, without a server",
            reason="",
            code="OK",
            error_reason="",
            request_id="",
        )
    )
