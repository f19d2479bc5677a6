"""The record of changes and of refused calls."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import TYPE_CHECKING, Final

from control_plane.store.bulk import insert_rows
from control_plane.store.queries import Queries
from control_plane.store.schema import audit_records
from grpc_runtime.sql.audit import COLUMNS, AuditRows, row_of

if TYPE_CHECKING:
    from grpc_runtime.audit.records import AuditPlace, AuditRecord

_ROWS: Final = AuditRows(audit_records)


class AuditQueries(Queries):
    """The part of a transaction that is about audit records."""

    def add_audit_records(self, records: Iterable[AuditRecord]) -> None:
        """Stores new records."""
        rows = [row_of(record) for record in records]
        insert_rows(self._connection, audit_records, COLUMNS, rows)

    def scan_audit_records(
        self,
        *,
        beyond: AuditPlace,
        start: datetime,
        principal: str = "",
        root: str = "",
        limit: int,
    ) -> list[AuditRecord]:
        """Records beyond a place, newest first. See `Transaction`."""
        return _ROWS.scan(
            self._connection,
            beyond=beyond,
            start=start,
            principal=principal,
            root=root,
            limit=limit,
        )

    def prune_audit_records(self, before: datetime, limit: int) -> int:
        """Deletes at most `limit` records, those before a time; returns how many were deleted."""
        return _ROWS.prune(self._connection, before, limit)
