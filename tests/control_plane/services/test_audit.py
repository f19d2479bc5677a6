"""The record of a change is made once, whatever becomes of its caller."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import grpc
import pytest

from control_plane.rpc.auditing import RECORDER
from control_plane.services.audit import AuditedStore, AuditRecords
from control_plane.services.passing import PassingStore
from grpc_runtime.audit.log import AuditLog
from grpc_runtime.audit.records import AuditPlace
from grpc_runtime.auth import CallInfo, Kept, Principal, bind_call
from grpc_runtime.observing import FinishedCall
from midcourse.control.v1 import control_pb2
from tests.support.domain_values import NOW
from tests.support.use_cases import UseCases

METHOD = "/midcourse.control.v1.ControlPlaneService/DeleteJob"
ADA = Principal("ada")


class LeftAlone(PassingStore):
    """A store whose callers leave while it commits."""

    async def write(self, work: Callable[[Any], Any]) -> Any:
        await super().write(work)
        raise asyncio.CancelledError


@pytest.mark.parametrize("is_committed", [True, False])
async def test_a_caller_who_leaves_during_the_commit_leaves_one_record(
    plane: UseCases, is_committed: bool
) -> None:
    kept = Kept(control_pb2.DeleteJobRequest(name="jobs/j"))
    log = AuditLog(AuditRecords(plane.store), lambda: NOW, lambda _: False)
    if is_committed:
        store = AuditedStore(LeftAlone(plane.store), lambda: NOW, RECORDER.entry_now)

        async def call() -> None:
            bind_call(CallInfo(METHOD, ADA, "unix:", "r-1", kept=kept))
            await store.write(lambda _: None)

        with pytest.raises(asyncio.CancelledError):
            await asyncio.create_task(call())
    RECORDER.refused_calls(log)(
        FinishedCall(
            method=METHOD,
            known=True,
            principal=ADA,
            peer="unix:",
            request_id="r-1",
            code=grpc.StatusCode.CANCELLED,
            reason="",
            message="",
            trace_parent="",
            duration=0.1,
            request=kept.request,
            kept=kept,
        )
    )
    await log.close()
    place = AuditPlace(NOW.replace(year=9000), 0)
    records = await plane.store.read(
        lambda tx: tx.scan_audit_records(beyond=place, start=NOW, limit=9)
    )
    assert [each.code for each in records] == ["OK" if is_committed else "CANCELLED"]
