"""Audit records in a table."""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING, Final, Literal

from sqlalchemy import (
    BigInteger,
    Column,
    Connection,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    bindparam,
    delete,
    select,
    tuple_,
)

from grpc_runtime.audit.records import AuditPlace, AuditRecord
from grpc_runtime.sql.columns import KEY, UtcTime
from grpc_runtime.sql.prepared import Prepared

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

_FIELDS: Final = tuple(field.name for field in fields(AuditRecord))
_GIVEN: Final = tuple(name for name in _FIELDS if name != "key")

COLUMNS: Final = (*_GIVEN, "root")
"""What a new row is made of; see :func:`row_of`."""

_By = Literal["", "principal", "root"]


def audit_table(metadata: MetaData) -> Table:
    """Returns the table of audit records, with its indexes."""
    table = Table(
        "audit_records",
        metadata,
        # SQLite counts up by itself only in columns of just this type.
        Column(
            "key",
            BigInteger().with_variant(Integer, "sqlite"),
            primary_key=True,
            autoincrement=True,
        ),
        Column("time", UtcTime, nullable=False),
        Column("principal", KEY, nullable=False),
        Column("peer", String, nullable=False),
        Column("method", String, nullable=False),
        Column("resource", KEY, nullable=False),
        Column("summary", Text, nullable=False),
        Column("reason", Text, nullable=False),
        Column("code", String, nullable=False),
        Column("error_reason", String, nullable=False),
        Column("request_id", String, nullable=False),
        # What the resource belongs to, such as its job.
        Column("root", KEY, nullable=False),
        sqlite_autoincrement=True,
    )
    Index("audit_records_by_time", table.c.time, table.c.key)
    for by in (table.c.principal, table.c.root):
        Index(f"audit_records_by_{by.name}", by, table.c.time, table.c.key)
    return table


def row_of(record: AuditRecord) -> Sequence[object]:
    """Returns the row of a new record, in the order of :data:`COLUMNS`."""
    return (*(getattr(record, name) for name in _GIVEN), record.root)


class AuditRows:
    """The rows of such a table."""

    def __init__(self, table: Table) -> None:
        """Prepares the statements for a table that :func:`audit_table` has made."""
        self._table = table
        self._place = tuple_(table.c.time, table.c.key)
        oldest = (
            select(table.c.key)
            .where(table.c.time < bindparam("before"))
            .order_by(*self._place.clauses)
            .limit(bindparam("limit"))
        )
        self._prune = Prepared(delete(table).where(table.c.key.in_(oldest)))
        kinds: tuple[_By, ...] = ("", "principal", "root")
        self._scans = {by: self._prepare_scan(by) for by in kinds}

    def _prepare_scan(self, by: _By) -> Prepared:
        columns = self._table.c
        place = tuple_(bindparam("time", type_=columns.time.type), bindparam("key"))
        scan = select(*(columns[name] for name in _FIELDS))
        if by:
            scan = scan.where(columns[by] == bindparam("wanted"))
        scan = scan.where(place > self._place, columns.time >= bindparam("start"))
        newest_first = (column.desc() for column in self._place.clauses)
        return Prepared(scan.order_by(*newest_first).limit(bindparam("limit")))

    def scan(
        self,
        connection: Connection,
        *,
        beyond: AuditPlace,
        start: datetime,
        principal: str,
        root: str,
        limit: int,
    ) -> list[AuditRecord]:
        """Returns records beyond a place, newest first; see ``AuditStore.scan_audit_records``."""
        by: _By = "root" if root else "principal" if principal else ""
        values: dict[str, object] = {"wanted": root or principal} if by else {}
        rows = self._scans[by].rows(
            connection, time=beyond.time, key=beyond.key, start=start, limit=limit, **values
        )
        return [AuditRecord(*row) for row in rows]

    def prune(self, connection: Connection, before: datetime, limit: int) -> int:
        """Deletes at most ``limit`` records before a time; returns how many were deleted."""
        return self._prune.run(connection, before=before, limit=limit)
