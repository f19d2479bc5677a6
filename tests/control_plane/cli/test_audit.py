"""`midcourse audit` against a real server."""

from __future__ import annotations

import io
import time

import pytest
from rich.console import Console

from control_plane.cli import audit_tables
from control_plane.client import Client
from midcourse.control.v1 import access_pb2
from tests.support.midcourse_command import Midcourse


def test_times_are_those_of_the_place(monkeypatch: pytest.MonkeyPatch) -> None:
    record = access_pb2.AuditRecord(principal="ada")
    record.time.FromJsonString("2026-03-01T02:00:00Z")
    written = io.StringIO()
    monkeypatch.setenv("TZ", "EST5")
    time.tzset()
    try:
        Console(file=written, width=200).print(audit_tables.records([record]))
    finally:
        monkeypatch.undo()
        time.tzset()
    assert "2026-02-28 21:00:00" in written.getvalue()


@pytest.mark.parametrize(
    ("peer", "shown"),
    [
        ("ipv4:10.1.2.3:51234", "10.1.2.3"),
        ("ipv6:%5B::1%5D:51234", "::1"),  # as gRPC quotes it
        ("ipv6:[2001:db8::1]:51234", "2001:db8::1"),
        ("unix:/run/midcourse.sock", "unix:/run/midcourse.sock"),
        ("", "–"),
    ],
)
def test_callers_are_shown_by_their_addresses(peer: str, shown: str) -> None:
    (row,) = audit_tables.records([access_pb2.AuditRecord(peer=peer)]).rows
    assert row[2] == shown


def test_who_changed_what(address: str) -> None:
    midcourse = Midcourse(address)
    with Client(address) as plane:
        plane.create_job("audited", labels={"team": "nlp"})
        plane.delete_job("audited")
        plane.create_job("audited-too")
    table = midcourse("audit", "--resource", "jobs/audited").stdout.splitlines()
    assert table[0].split()[:2] == ["TIME", "WHO"]
    assert "delete" in table[1]
    assert "labels team=nlp" in table[2]
    assert len([line for line in table if "anonymous" in line]) == 2
    last = midcourse.json("audit", "-n", "1", "--principal", "anonymous", "--since", "1h")
    assert [each["resource"] for each in last["records"]] == ["jobs/audited-too"]
    assert "nothing" in midcourse("audit", "-r", "jobs/nobody").stdout
