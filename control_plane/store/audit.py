"""The record of changes and of refused calls."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import fields
from datetime import datetime
from functools import cache
from typing import Final, Literal

from sqlalchemy import bindparam, delete, select, tuple_

from control_plane.domain.audit import AuditPlace, AuditRecord
from control_plane.store.bulk import insert_rows
from control_plane.store.queries import Queries
from control_plane.store.schema import audit_records
from grpc_runtime.sql.prepared import Prepared

_FIELDS: Final = tuple(field.name for field in fields(AuditRecord))
_GIVEN: Final = tuple(name for name in _FIELDS if name != "key")
_PLACE: Final = tuple_(audit_records.c.time, audit_records.c.key)

_OLDEST = (
    select(audit_records.c.key)
    .where(audit_records.c.time < bindparam("before"))
    .order_by(*_PLACE.clauses)
    .limit(bindparam("limit"))
)
_PRUNE = Prepared(delete(audit_records).where(audit_records.c.key.in_(_OLDEST)))


@cache
def _scan(by: Literal["", "principal", "root"]) -> Prepared:
    """Records beyond a place, newest first; those of one principal, or about one thing."""
    time = audit_records.c.time
    place = tuple_(bindparam("time", type_=time.type), bindparam("key"))
    scan = select(*(audit_records.c[name] for name in _FIELDS))
    if by:
        scan = scan.where(audit_records.c[by] == bindparam("wanted"))
    scan = scan.where(place > _PLACE, time >= bindparam("start"))
    newest_first = (column.desc() for column in _PLACE.clauses)
    return Prepared(scan.order_by(*newest_first).limit(bindparam("limit")))


class AuditQueries(Queries):
    """The part of a transaction that is about audit records."""

    def add_audit_records(self, records: Iterable[AuditRecord]) -> None:
        """Stores new records."""
        rows: list[Sequence[object]] = [
            (*(getattr(record, name) for name in _GIVEN), record.root) for record in records
        ]
        insert_rows(self._connection, audit_records, (*_GIVEN, "root"), rows)

    def scan_audit_records(
        self,
        *,
        beyond: AuditPlace,
        start: datetime,
        principal: str = "",
        root: str = "",
        limit: int,
    ) -> list[AuditRecord]:
        """Records beyond a place, newest first.

        Args:
            beyond: The place.
            start: The oldest time.
            principal: Only of this one; empty: of all.
            root: Only about what belongs to this; empty: whatever. Only one of the two.
            limit: How many.
        """
        by: Literal["", "principal", "root"] = "root" if root else "principal" if principal else ""
        values: dict[str, object] = {"wanted": root or principal} if by else {}
        rows = _scan(by).rows(
            self._connection,
            time=beyond.time,
            key=beyond.key,
            start=start,
            limit=limit,
            **values,
        )
        return [AuditRecord(*row) for row in rows]

    def prune_audit_records(self, before: datetime, limit: int) -> int:
        """Deletes at most `limit` records, those before a time; returns how many were deleted."""
        return _PRUNE.run(self._connection, before=before, limit=limit)
