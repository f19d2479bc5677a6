"""The record of changes, each committed with its change, and of refused calls."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

from sqlalchemy import insert

from analytics_service.store.schema import audit_records
from grpc_runtime.sql.audit import COLUMNS, AuditRows, row_of

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from grpc_runtime.audit.records import AuditRecord

ROWS: Final = AuditRows(audit_records)


def add(connection: Connection, records: Iterable[AuditRecord]) -> None:
    """Stores new records."""
    rows = [dict(zip(COLUMNS, row_of(record), strict=True)) for record in records]
    if rows:
        connection.execute(insert(audit_records), rows)
