"""Audit records: listed newest first, by whom and about what, and forgotten."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from control_plane.services.ports import Store
from grpc_runtime.audit.records import AuditPlace, AuditRecord
from tests.support.domain_values import NOW, SECOND

LATER = NOW + timedelta(days=1)


def audit_record(number: int, principal: str = "ops", resource: str = "jobs/j") -> AuditRecord:
    return AuditRecord(
        time=NOW + number * SECOND,
        principal=principal,
        peer="ipv4:127.0.0.1:1",
        method="/a.B/C",
        resource=resource,
        summary="learning_rate → 1e-05",
        reason="why",
        code="OK",
        error_reason="",
        request_id=str(number),
    )


class AuditContract:
    """What a store keeps of audit records."""

    async def test_audit_records_are_found_by_whom_and_about_what(self, store: Store) -> None:
        records = [
            audit_record(1),
            # Written later, and not later than the others.
            audit_record(1, "eve", "jobs/j/updates/1"),
            audit_record(3, "Eve", "jobs/jj"),
            audit_record(2, "eve", "batches"),
        ]
        await store.write(lambda tx: tx.add_audit_records(records))

        async def ids(beyond: AuditPlace | None = None, **query: Any) -> list[tuple[str, str]]:
            asked = {"start": NOW, "limit": 9, **query}
            place = beyond or AuditPlace(LATER, 0)
            found = await store.read(lambda tx: tx.scan_audit_records(beyond=place, **asked))
            return [(each.request_id, each.principal) for each in found]

        assert await ids() == [("3", "Eve"), ("2", "eve"), ("1", "eve"), ("1", "ops")]
        assert await ids(limit=2) == [("3", "Eve"), ("2", "eve")]
        assert await ids(start=NOW + 2 * SECOND) == [("3", "Eve"), ("2", "eve")]
        assert await ids(principal="eve") == [("2", "eve"), ("1", "eve")]
        assert await ids(root="jobs/j") == [("1", "eve"), ("1", "ops")]
        place = AuditPlace(LATER, 0)
        first = (
            await store.read(lambda tx: tx.scan_audit_records(beyond=place, start=NOW, limit=3))
        )[-1]
        assert (first.time, first.resource, first.code) == (
            NOW + SECOND,
            "jobs/j/updates/1",
            "OK",
        )
        assert await ids(first.place) == [("1", "ops")]

    async def test_old_audit_records_go_a_few_at_a_time(self, store: Store) -> None:
        records = [audit_record(number) for number in (5, 1, 4, 2, 3)]
        await store.write(lambda tx: tx.add_audit_records(records))
        before = NOW + 4 * SECOND
        gone = [await store.write(lambda tx: tx.prune_audit_records(before, 2)) for _ in range(3)]
        assert gone == [2, 1, 0]
        place = AuditPlace(LATER, 0)
        left = await store.read(lambda tx: tx.scan_audit_records(beyond=place, start=NOW, limit=9))
        assert [each.request_id for each in left] == ["5", "4"]
