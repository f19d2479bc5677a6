"""Refused calls are written down, but nobody can fill the record with them."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

from grpc_runtime.audit.log import AuditLog
from grpc_runtime.audit.records import AuditRecord

NOW = datetime(2026, 3, 1, tzinfo=UTC)


class Written:
    """A store that keeps what is written."""

    def __init__(self) -> None:
        self.records: list[AuditRecord] = []

    async def add_audit_records(self, records: Iterable[AuditRecord]) -> None:
        self.records += records

    async def scan_audit_records(self, **_: Any) -> list[AuditRecord]:
        raise NotImplementedError


def refused(principal: str = "", peer: str = "ipv4:192.0.2.1:5", resource: str = "") -> AuditRecord:
    return AuditRecord(
        NOW, principal, peer, "/a.B/C", resource, "", "", "PERMISSION_DENIED", "NO", ""
    )


async def written(*records: AuditRecord, most_waiting: int = 10_000) -> list[tuple[str, str, str]]:
    """What is written of calls that are refused, all within a minute."""
    store = Written()
    log = AuditLog(store, lambda: NOW, lambda _: False, most_waiting=most_waiting)
    for record in records:
        log.refused(record, 0.0)
    await log.close()
    assert log.dropped == 0
    return [(each.principal, each.resource, each.summary) for each in store.records]


async def test_one_network_is_one_stranger() -> None:
    peers = [f"ipv6:%5B2001:db8::{number:x}%5D:5" for number in range(50)]
    told = await written(*(refused(peer=peer) for peer in peers))
    assert told == [("", "", ""), ("", "", "49 more within a minute")]


async def test_one_caller_does_not_keep_out_what_is_told_of_others() -> None:
    made_up = [refused("eve", resource=f"jobs/{number}") for number in range(5_000)]
    strangers = [refused(peer=f"ipv4:192.0.{number}.1:5") for number in range(200)]
    told = await written(*made_up, *strangers, refused("ada", resource="jobs/7"), most_waiting=500)
    assert [each for each in told if each[0] == "ada"] == [("ada", "jobs/7", "")]
    of_eve = [each for each in told if each[0] == "eve"]
    assert of_eve[:101] == [("eve", f"jobs/{number}", "") for number in range(101)]
    rest = "4899 more, not all about this, within a minute"
    assert of_eve[101:] == [("eve", "jobs/4999", rest)]
    assert [each[2] for each in told if not each[0]] == [""] * 101 + [
        "99 more, not all about this, within a minute"
    ]


async def test_after_a_minute_different_things_are_told_again() -> None:
    store = Written()
    log = AuditLog(store, lambda: NOW, lambda _: False)
    for number in range(150):
        log.refused(refused("eve", resource=f"jobs/{number}"), 0.0)
    log.refused(refused("eve", resource="jobs/new"), 61.0)
    await log.flush()
    assert [(each.resource, each.summary) for each in store.records[-2:]] == [
        ("jobs/149", "49 more, not all about this, within a minute"),
        ("jobs/new", ""),
    ]
    assert log._different["eve"] == 1
