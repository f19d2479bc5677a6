"""The record of who changed what, over a real channel."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from control_plane.rpc.auditing import CHANGES
from control_plane.services.ports import Transaction
from grpc_runtime.bearer import bearer_metadata, new_secret
from midcourse.agent.v1 import session_pb2, session_pb2_grpc
from midcourse.control.v1 import access_pb2, access_pb2_grpc, control_pb2
from tests.support.plane import error_of, request, running_plane, set_rate
from tests.support.scripted_agent import ScriptedAgent
from tests.support.secured import Metadata, SecuredPlane, secured_plane

READS = ("Get", "List", "Watch", "Wait", "Query")


def test_every_method_that_changes_something_is_described() -> None:
    asked = {
        method.input_type._concrete_class
        for module in (control_pb2, access_pb2, session_pb2)
        for service in module.DESCRIPTOR.services_by_name.values()
        for method in service.methods
        if not method.name.startswith(READS)
    }
    assert asked == set(CHANGES), "say in control_plane.rpc.auditing what the record tells of it"


@contextlib.asynccontextmanager
async def served(tmp_path: Path, **settings: Any) -> AsyncIterator[Auditor]:
    async with secured_plane(tmp_path / "control.db", **settings) as secured:
        _, secret = await secured.token("admin", principal="root")
        yield Auditor(secured, bearer_metadata(secret))


class Auditor:
    """A plane, and an administrator who looks at its record."""

    def __init__(self, secured: SecuredPlane, admin: Metadata) -> None:
        self.secured = secured
        self.control = secured.running.control
        self.access: Any = access_pb2_grpc.AccessServiceStub(secured.running.channel)
        self.admin = admin

    async def records(self, **query: Any) -> list[access_pb2.AuditRecord]:
        """All records, the oldest first."""
        asked = access_pb2.ListAuditRecordsRequest(**query)
        answer = await self.access.ListAuditRecords(asked, metadata=self.admin)
        return list(reversed(answer.records))

    async def told(self, **query: Any) -> list[tuple[str, str, str, str, str]]:
        return [
            (each.principal, each.resource, each.summary, each.code, each.error_reason)
            for each in await self.records(**query)
        ]


async def test_changes_refusals_and_sessions_are_recorded(tmp_path: Path) -> None:
    async with served(tmp_path) as auditor:
        ops = await auditor.secured.caller("operator", principal="ops")
        viewer = await auditor.secured.caller("viewer", principal="eve")
        agents = await auditor.secured.caller("agent", jobs=["j"], principal="trainer")
        agent = ScriptedAgent(
            session_pb2_grpc.AgentServiceStub(auditor.secured.running.channel), "j"
        )
        await agent.connect(metadata=agents)
        control = auditor.control
        asked = request(spec=set_rate(3e-5, reason="the loss is flat"))
        await control.UpdateParameters(asked, metadata=(*ops, ("x-request-id", "r-1")))
        # An agent that may see its own job alone gets what is sent to it.
        assert [update.revision for update in await agent.receive()] == [1]
        # Neither reading nor asking what would be is a change.
        asked.validate_only = True
        await control.UpdateParameters(asked, metadata=ops)
        await control.GetJob(control_pb2.GetJobRequest(name="jobs/j"), metadata=ops)
        await error_of(control.UpdateParameters(request(value=-1.0), metadata=ops))
        await error_of(control.UpdateParameters(request(), metadata=viewer))
        await error_of(control.GetJob(control_pb2.GetJobRequest(name="jobs/j")))
        cancel = control_pb2.CancelUpdateRequest(name="jobs/j/updates/1", reason="a slip")
        cancel.timeout.FromSeconds(0)
        await control.CancelUpdate(cancel, metadata=ops)
        batch = control_pb2.BatchUpdateParametersRequest(jobs=["jobs/j"], spec=set_rate(2e-5))
        await control.BatchUpdateParameters(batch, metadata=ops)
        label = control_pb2.UpdateJobRequest(name="jobs/j", set_labels={"team": "nlp"})
        await control.UpdateJob(label, metadata=ops)
        create = control_pb2.CreateJobRequest(job_id="k", labels={"a": "b"}, method="sft")
        await control.CreateJob(create, metadata=ops)
        await control.DeleteJob(control_pb2.DeleteJobRequest(name="jobs/k"), metadata=ops)
        made = await auditor.access.CreateToken(
            access_pb2.CreateTokenRequest(
                principal="bot", access=access_pb2.Access(role=access_pb2.ROLE_VIEWER)
            ),
            metadata=auditor.admin,
        )
        await auditor.access.RevokeToken(
            access_pb2.RevokeTokenRequest(name=made.token.name), metadata=auditor.admin
        )
        told = await auditor.told()
        assert sorted(told) == sorted(
            [
                ("trainer", "jobs/j", told[0][2], "OK", ""),
                ("ops", "jobs/j/updates/1", "learning_rate → 3e-05", "OK", ""),
                ("ops", "jobs/j", "learning_rate → -1", "INVALID_ARGUMENT", "INVALID_ARGUMENT"),
                ("eve", "jobs/j", "learning_rate → 1e-05", "PERMISSION_DENIED", "ROLE_REQUIRED"),
                ("", "jobs/j", "", "UNAUTHENTICATED", "CREDENTIALS_REQUIRED"),
                ("ops", "jobs/j/updates/1", "cancel", "OK", ""),
                ("ops", "batches/1", "learning_rate → 2e-05, for jobs/j", "OK", ""),
                ("ops", "jobs/j", "set labels team=nlp", "OK", ""),
                ("ops", "jobs/k", "create, method sft, labels a=b", "OK", ""),
                ("ops", "jobs/k", "delete", "OK", ""),
                ("root", made.token.name, "for bot: viewer, all jobs", "OK", ""),
                ("root", made.token.name, "revoke", "OK", ""),
            ]
        )
        assert told[0][2].startswith("session of process ")
        [update] = await auditor.records(principal="ops", resource="jobs/j/updates", page_size=1)
        assert update.reason == "a slip"
        first = (await auditor.records(principal="ops"))[0]
        assert (first.reason, first.request_id) == ("the loss is flat", "r-1")
        assert first.method == "/midcourse.control.v1.ControlPlaneService/UpdateParameters"
        assert first.peer.startswith("ipv4:127.0.0.1:")
        assert {each[1] for each in await auditor.told(resource="jobs/k")} == {"jobs/k"}
        await agent.leave()


async def test_pages_and_times(tmp_path: Path) -> None:
    async with served(tmp_path) as auditor:
        for number in range(7):
            asked = control_pb2.CreateJobRequest(job_id=f"j{number % 2}-{number}")
            await auditor.control.CreateJob(asked, metadata=auditor.admin)
        everything = await auditor.records()
        found: list[access_pb2.AuditRecord] = []
        query = access_pb2.ListAuditRecordsRequest(page_size=3)
        while True:
            page = await auditor.access.ListAuditRecords(query, metadata=auditor.admin)
            found += page.records
            if not page.next_page_token:
                break
            query.page_token = page.next_page_token
        assert found == list(reversed(everything))
        later = await auditor.records(start_time=everything[3].time)
        assert later == everything[3:]
        earlier = await auditor.records(end_time=everything[3].time)
        assert earlier == everything[:3]
        query.page_token = page.next_page_token or "bWFkZSB1cA"
        error = await error_of(auditor.access.ListAuditRecords(query, metadata=auditor.admin))
        assert error.reason == "PAGE_TOKEN_INVALID"


async def test_only_administrators_see_it(tmp_path: Path) -> None:
    async with served(tmp_path) as auditor:
        ops = await auditor.secured.caller("operator")
        asked = access_pb2.ListAuditRecordsRequest()
        error = await error_of(auditor.access.ListAuditRecords(asked, metadata=ops))
        assert error.code is grpc.StatusCode.PERMISSION_DENIED


async def test_who_knocks_again_and_again_fills_no_disk(tmp_path: Path) -> None:
    async with served(tmp_path) as auditor:
        secret = new_secret()
        for number in range(30):
            asked = control_pb2.GetJobRequest(name=f"jobs/j{number}")
            error = await error_of(auditor.control.GetJob(asked, metadata=bearer_metadata(secret)))
            assert error.reason == "TOKEN_UNKNOWN"
        assert [each[3] for each in await auditor.told()] == ["UNAUTHENTICATED"]
        await auditor.secured.plane.audit.close()
        told = await auditor.told()
        assert [each[2] for each in told] == ["", "29 more within a minute"]


async def test_a_secret_sent_by_mistake_is_not_recorded(tmp_path: Path) -> None:
    async with served(tmp_path) as auditor:
        secret = new_secret()
        asked = access_pb2.RevokeTokenRequest(name=f"tokens/{secret}")
        await error_of(auditor.access.RevokeToken(asked, metadata=auditor.admin))
        spec = set_rate(reason=f"as {secret} said\n\x1b[2J" + "x" * 10_000)
        await error_of(auditor.control.UpdateParameters(request(spec=spec), metadata=auditor.admin))
        revoked, refused = await auditor.records()
        assert revoked.resource == "tokens/mc_…"
        assert refused.reason.startswith("as mc_… said\\n\\x1b[2J")
        assert len(refused.reason) <= 1_000


async def test_a_change_and_its_record_are_one(tmp_path: Path) -> None:
    """Without the record there is no change."""
    async with running_plane(tmp_path / "control.db") as running:

        def no_room(tx: Transaction) -> None:
            from tests.control_plane.store.helpers import connection_of

            connection_of(tx).exec_driver_sql("ALTER TABLE audit_records RENAME TO full")

        await running.plane._store.write(no_room)
        stub = running.control
        with pytest.raises(grpc.aio.AioRpcError):
            await stub.CreateJob(control_pb2.CreateJobRequest(job_id="j"))
        error = await error_of(stub.GetJob(control_pb2.GetJobRequest(name="jobs/j")))
        assert error.reason == "JOB_NOT_FOUND"
        running.plane.audit._waiting.clear()
