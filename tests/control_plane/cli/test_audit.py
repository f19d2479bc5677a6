"""`midcourse audit` against a real server."""

from __future__ import annotations

from control_plane.client import Client
from tests.support.midcourse_command import Midcourse


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
