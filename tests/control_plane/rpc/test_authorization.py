"""Who may call what: every method, every role, an own job and a foreign one."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest

from analytics_service.rpc.policies import POLICY as ANALYTICS_POLICY
from control_plane.domain.batch import Batch
from control_plane.rpc.policies import POLICY
from control_plane.services.ports import Transaction
from grpc_runtime.auth import Principal
from grpc_runtime.errors import STATUS_LOST, StatusError, from_rpc_error
from grpc_runtime.policy import ANY_CALLER
from midcourse.agent.v1 import session_pb2
from midcourse.analytics.v1 import analytics_pb2
from midcourse.control.v1 import access_pb2, control_pb2
from tests.support.domain_values import NOW, job, set_rate, update
from tests.support.plane import set_rate as asked_rate
from tests.support.scripted_agent import hello
from tests.support.secured import Metadata, SecuredPlane, secured_plane

OWN, FOREIGN = "own", "foreign"
BATCHES = {OWN: 1, FOREIGN: 2}
ROLES = ("viewer", "operator", "agent", "admin")
READ = {"viewer", "operator", "admin"}
CHANGE = {"operator", "admin"}
ADMIN = {"admin"}

# Written once more, and not taken from the policy: a slip there must show here.
MAY: dict[str, set[str]] = {
    "ControlPlaneService/CreateJob": CHANGE,
    "ControlPlaneService/GetJob": READ,
    "ControlPlaneService/ListJobs": READ,
    "ControlPlaneService/UpdateJob": CHANGE,
    "ControlPlaneService/DeleteJob": CHANGE,
    "ControlPlaneService/WatchJobs": READ,
    "ControlPlaneService/UpdateParameters": CHANGE,
    "ControlPlaneService/GetUpdate": READ,
    "ControlPlaneService/ListUpdates": READ,
    "ControlPlaneService/WaitUpdate": READ,
    "ControlPlaneService/CancelUpdate": CHANGE,
    "ControlPlaneService/BatchUpdateParameters": CHANGE,
    "ControlPlaneService/GetBatch": READ,
    "ControlPlaneService/ListBatches": READ,
    "ControlPlaneService/WatchBatch": READ,
    "ControlPlaneService/CancelBatch": CHANGE,
    "ControlPlaneService/QueryMetrics": READ,
    "AccessService/GetCaller": set(ROLES),
    "AccessService/CreateToken": ADMIN,
    "AccessService/ListTokens": ADMIN,
    "AccessService/RevokeToken": ADMIN,
    "AccessService/ListAuditRecords": ADMIN,
    "AgentService/Session": {"agent", "admin"},
}
MAY_ASK: dict[str, set[str]] = {
    f"AnalyticsService/{name}": READ
    for name in (
        *("ListModels", "CreateSession", "GetSession", "ListSessions", "UpdateSession"),
        *("DeleteSession", "ListMessages", "Chat", "CancelChat", "GetUsage", "GetBudget"),
        *("ListBudgets", "RecommendModel"),
    )
} | {"AnalyticsService/SetBudget": ADMIN, "AnalyticsService/ListAuditRecords": ADMIN}

# What each method is asked about a job. A method that is not here is asked with an empty request.
ABOUT: dict[str, Callable[[str], dict[str, Any]]] = {
    "CreateJob": lambda job_id: {
        "job_id": f"{job_id}-new",
        "labels": {"of": job_id},
        "validate_only": True,
    },
    "GetJob": lambda job_id: {"name": f"jobs/{job_id}"},
    "UpdateJob": lambda job_id: {
        "name": f"jobs/{job_id}",
        "set_labels": {"seen": "yes"},
        "validate_only": True,
    },
    "DeleteJob": lambda job_id: {"name": f"jobs/{job_id}", "validate_only": True},
    "UpdateParameters": lambda job_id: {
        "job": f"jobs/{job_id}",
        "spec": asked_rate(),
        "validate_only": True,
    },
    "GetUpdate": lambda job_id: {"name": f"jobs/{job_id}/updates/1"},
    "ListUpdates": lambda job_id: {"parent": f"jobs/{job_id}"},
    "WaitUpdate": lambda job_id: {"name": f"jobs/{job_id}/updates/1", "timeout": {}},
    "CancelUpdate": lambda job_id: {"name": f"jobs/{job_id}/updates/1", "timeout": {}},
    "BatchUpdateParameters": lambda job_id: {
        "jobs": [f"jobs/{job_id}"],
        "spec": asked_rate(),
        "best_effort": True,
        "validate_only": True,
    },
    "GetBatch": lambda job_id: {"name": f"batches/{BATCHES[job_id]}"},
    "WatchBatch": lambda job_id: {"name": f"batches/{BATCHES[job_id]}"},
    "CancelBatch": lambda job_id: {"name": f"batches/{BATCHES[job_id]}"},
    "QueryMetrics": lambda job_id: {"job": f"jobs/{job_id}"},
    "RevokeToken": lambda job_id: {"name": "tokens/000000000000"},
}
# These show what there is: all of it must be the caller's.
LISTINGS = ("ListJobs", "WatchJobs", "ListBatches")


def methods_of(*modules: Any) -> Iterator[tuple[str, Any]]:
    """(service/method, its descriptor) of all services of some files."""
    for module in modules:
        for service in module.DESCRIPTOR.services_by_name.values():
            for method in service.methods:
                yield f"{service.name}/{method.name}", method


CONTROL = dict(methods_of(control_pb2, access_pb2, session_pb2))
ANALYTICS = dict(methods_of(analytics_pb2))


def path_of(method: Any) -> str:
    return f"/{method.containing_service.full_name}/{method.name}"


def test_every_method_has_a_policy_and_is_part_of_this_test() -> None:
    assert set(CONTROL) == set(MAY)
    assert set(ANALYTICS) == set(MAY_ASK)
    for policy, methods, may in (
        (POLICY, CONTROL, MAY),
        (ANALYTICS_POLICY, ANALYTICS, MAY_ASK),
    ):
        for name, method in methods.items():
            roles = policy.roles(path_of(method))
            assert roles is not None, f"{name} has no policy: nobody may call it"
            given = set(ROLES) if roles >= ANY_CALLER else set(roles)
            assert given == may[name], name


def test_the_policy_holds_for_every_role() -> None:
    for policy, methods, may in (
        (POLICY, CONTROL, MAY),
        (ANALYTICS_POLICY, ANALYTICS, MAY_ASK),
    ):
        for name, method in methods.items():
            for role in ROLES:
                caller = Principal("somebody", frozenset({role}))
                if role in may[name]:
                    policy.check(caller, path_of(method))
                else:
                    with pytest.raises(StatusError, match=method.name):
                        policy.check(caller, path_of(method))


async def call(channel: grpc.aio.Channel, method: Any, about: str, who: Metadata) -> str:
    """As `_called`, again where gRPC has lost the answer, as it does if a write meets the end."""
    for _ in range(20):
        if (got := await _called(channel, method, about, who)) != STATUS_LOST:
            return got
    return STATUS_LOST


async def _called(channel: grpc.aio.Channel, method: Any, about: str, who: Metadata) -> str:
    """Calls a method about a job; returns what came of it, and, of a listing, what is in it."""
    kind = "stream" if method.client_streaming else "unary"
    kind += "_stream" if method.server_streaming else "_unary"
    request_type = method.input_type._concrete_class
    multi = getattr(channel, kind)(
        path_of(method),
        request_serializer=request_type.SerializeToString,
        response_deserializer=method.output_type._concrete_class.FromString,
    )
    try:
        if kind == "stream_stream":
            stream = multi(metadata=who, timeout=10)
            await stream.write(session_pb2.SessionRequest(sequence=1, hello=hello(about)))
            answer = await stream.read()
            if answer is grpc.aio.EOF:
                await stream
            stream.cancel()
            return "OK"
        fields = ABOUT[method.name](about) if method.name in ABOUT else {}
        request = request_type(**fields)
        if kind == "unary_unary":
            answers = [await multi(request, metadata=who, timeout=10)]
        else:
            stream = multi(request, metadata=who, timeout=10)
            # The snapshot of a watch ends with a bookmark, that of a batch is the first message.
            answers = [await stream.read()]
            while answers[-1] is not grpc.aio.EOF and method.name == "WatchJobs":
                if answers[-1].type == control_pb2.JOB_EVENT_TYPE_BOOKMARK:
                    break
                answers.append(await stream.read())
            if answers[-1] is grpc.aio.EOF:
                await stream
            stream.cancel()
    except grpc.aio.AioRpcError as error:
        status = from_rpc_error(error)
        return status.reason or status.code.name
    if method.name == "BatchUpdateParameters":
        return ",".join(item.refusal.reason for item in answers[0].items) or "OK"
    if method.name in LISTINGS:
        return " ".join(sorted(_named(answers)))
    return "OK"


def _named(answers: list[Any]) -> Iterator[str]:
    for answer in answers:
        for each in getattr(answer, "jobs", []):
            yield each.name
        if "job" in answer.DESCRIPTOR.fields_by_name and answer.HasField("job"):
            yield answer.job.name
        for each in getattr(answer, "batches", []):
            yield each.name


def _fill(tx: Transaction) -> None:
    """A job of one's own and a foreign one, each with an update, of a batch."""
    for number, job_id in enumerate((OWN, FOREIGN), 1):
        made = tx.insert_job(job(id=job_id, uid=job_id, labels={"of": job_id}, revision=1))
        batch = tx.insert_batch(
            Batch(set_rate(), "", False, "ops", f"r{number}", "digest", NOW, total=1), {}
        )
        assert batch.key == BATCHES[job_id]
        one = update(batch=f"batches/{batch.key}")
        tx.insert_updates([(made, replace(one, job_id=job_id))])


@contextlib.asynccontextmanager
async def filled_plane(folder: Path) -> AsyncIterator[SecuredPlane]:
    async with secured_plane(folder / "control.db") as secured:
        await secured.plane._store.write(_fill)
        yield secured


# Of a foreign job, a caller learns no more than of one that there is not.
HIDDEN = {
    "GetJob": "JOB_NOT_FOUND",
    "UpdateJob": "JOB_NOT_FOUND",
    "DeleteJob": "JOB_NOT_FOUND",
    "UpdateParameters": "JOB_NOT_FOUND",
    "GetUpdate": "JOB_NOT_FOUND",
    "ListUpdates": "JOB_NOT_FOUND",
    "WaitUpdate": "JOB_NOT_FOUND",
    "CancelUpdate": "JOB_NOT_FOUND",
    "QueryMetrics": "JOB_NOT_FOUND",
    "BatchUpdateParameters": "JOB_NOT_FOUND",
    "GetBatch": "BATCH_NOT_FOUND",
    "WatchBatch": "BATCH_NOT_FOUND",
    "CancelBatch": "BATCH_NOT_FOUND",
    "CreateJob": "OUT_OF_SCOPE",
    "Session": "OUT_OF_SCOPE",
    "ListJobs": f"jobs/{OWN}",
    "WatchJobs": f"jobs/{OWN}",
    "ListBatches": "batches/1",
}
REFUSED = {"CREDENTIALS_REQUIRED", "ROLE_REQUIRED", "INTERNAL", *HIDDEN.values()}
SEES_ALL = {
    "ListJobs": f"jobs/{FOREIGN} jobs/{OWN}",
    "WatchJobs": f"jobs/{FOREIGN} jobs/{OWN}",
    "ListBatches": "batches/1 batches/2",
}


@pytest.mark.parametrize("bounds", ["ids", "labels", "none"])
async def test_every_method_for_every_role_with_own_and_foreign_jobs(
    tmp_path: Path, bounds: str
) -> None:
    scopes: dict[str, dict[str, Any]] = {
        "ids": {"jobs": [f"{OWN}*"]},
        "labels": {"selector": f"of={OWN}"},
        "none": {},
    }
    scope = scopes[bounds]
    wrong = []
    async with filled_plane(tmp_path) as secured:
        callers: dict[str, Metadata] = {"nobody": ()}
        for role in ROLES:
            bound = {} if role == "admin" else dict(scope)
            if role == "agent":
                bound.setdefault("jobs", ["*"])
            callers[role] = await secured.caller(role, **bound)
        for name, method in CONTROL.items():
            for role, who in callers.items():
                for about in (OWN, FOREIGN):
                    is_hidden = about == FOREIGN and role != "admin" and bounds != "none"
                    sees_all = role == "admin" or bounds == "none"
                    got = await call(secured.running.channel, method, about, who)
                    if role == "nobody":
                        fine = got == "CREDENTIALS_REQUIRED"
                    elif role not in MAY[name]:
                        fine = got == "ROLE_REQUIRED"
                    elif method.name in LISTINGS:
                        fine = got == (SEES_ALL if sees_all else HIDDEN)[method.name]
                    elif is_hidden and method.name in HIDDEN:
                        fine = got == HIDDEN[method.name]
                    else:
                        fine = got not in REFUSED
                    if not fine:
                        wrong.append(f"{role} {name} {about}: {got}")
    assert not wrong, "\n".join(wrong)


async def test_a_foreign_job_is_answered_as_one_that_there_is_not(tmp_path: Path) -> None:
    async with filled_plane(tmp_path) as secured:
        who = await secured.caller("operator", selector=f"of={OWN}")
        for name in ("GetJob", "GetUpdate", "QueryMetrics", "ListUpdates", "UpdateParameters"):
            method = CONTROL[f"ControlPlaneService/{name}"]

            async def told(about: str, method: Any = method) -> str:
                request = method.input_type._concrete_class(**ABOUT[method.name](about))
                multi: Any = secured.running.channel.unary_unary(
                    path_of(method), request_serializer=type(request).SerializeToString
                )
                with pytest.raises(grpc.aio.AioRpcError) as failed:
                    await multi(request, metadata=who)
                return str(failed.value.details()).replace(about, "JOB")

            assert await told(FOREIGN) == await told("nowhere"), name


async def test_health_is_open_and_reflection_is_for_those_who_are_known(tmp_path: Path) -> None:
    async with secured_plane(tmp_path / "control.db") as secured:
        channel = secured.running.channel
        health: Any = channel.unary_unary("/grpc.health.v1.Health/Check")
        assert await health(b"") == b"\x08\x01"
        for version in ("v1", "v1alpha"):
            path = f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo"

            async def asked(who: Metadata, path: str = path) -> Any:
                stream: Any = channel.stream_stream(path)(metadata=who)
                await stream.write(b"\x3a\x00")  # list_services
                await stream.done_writing()
                return await stream.read()

            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await asked(())
            assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED
            agent = await secured.caller("agent", jobs=["x"])
            assert b"midcourse.control.v1.ControlPlaneService" in await asked(agent)


async def test_without_authentication_callers_on_this_host_may_do_everything(
    tmp_path: Path,
) -> None:
    async with secured_plane(tmp_path / "control.db", auth="none") as secured:
        await secured.plane._store.write(_fill)
        got: Awaitable[list[str]] = asyncio.gather(
            *(
                call(secured.running.channel, method, OWN, ())
                for name, method in CONTROL.items()
                if method.name in ("GetCaller", "ListTokens", "ListJobs", "GetUpdate")
            )
        )
        assert set(await got) == {"OK", SEES_ALL["ListJobs"]}


@pytest.mark.parametrize("scope", [{"selector": f"of={OWN}"}, {"jobs": [f"{OWN}*"]}], ids=str)
async def test_updates_of_all_jobs_are_those_of_own_jobs(
    tmp_path: Path, scope: dict[str, Any]
) -> None:
    async with filled_plane(tmp_path) as secured:
        control = secured.running.control
        who = await secured.caller("viewer", **scope)
        newest, oldest = control_pb2.UpdateOrder.values()
        for order in (newest, oldest):
            request = control_pb2.ListUpdatesRequest(parent="jobs/-", order=order, page_size=1)
            found = await control.ListUpdates(request, metadata=who)
            assert [each.name for each in found.updates] == [f"jobs/{OWN}/updates/1"]
        admin = await secured.caller("admin")
        found = await control.ListUpdates(
            control_pb2.ListUpdatesRequest(parent="jobs/-"), metadata=admin
        )
        assert len(found.updates) == 2


async def test_a_label_that_says_job_makes_no_job_ones_own(tmp_path: Path) -> None:
    """Labels come from agents, ids do not change: where a scope names ids, labels count nothing."""
    async with filled_plane(tmp_path) as secured:

        def spoof(tx: Transaction) -> None:
            tx.insert_job(job(id="spoofed", uid="s", labels={"job": OWN}))

        await secured.plane._store.write(spoof)
        who = await secured.caller("viewer", jobs=[OWN])
        listed = await secured.running.control.ListJobs(control_pb2.ListJobsRequest(), metadata=who)
        assert [each.name for each in listed.jobs] == [f"jobs/{OWN}"]
