"""Every bad request has an error of its own: a code, a reason, the field; and changes nothing."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from control_plane.domain.errors import Reason
from control_plane.rpc.errors import CATALOGUE
from grpc_runtime.paging import write_token
from midcourse.agent.v1 import session_pb2
from midcourse.control.v1 import control_pb2 as pb
from midcourse.control.v1 import job_pb2, parameter_pb2, update_pb2
from tests.support.plane import RunningPlane, error_of, request, running_plane, set_rate

Code = grpc.StatusCode


def test_every_reason_has_its_status() -> None:
    assert set(CATALOGUE) == set(Reason)
    assert Code.OK not in CATALOGUE.values()
    assert all(reason.value == reason.name for reason in Reason)


@dataclass
class Bad:
    """A request, and what is to be said of it."""

    method: str
    request: Any
    code: grpc.StatusCode
    reason: str
    field: str | None = None
    said: str = ""


def change(**fields: Any) -> pb.UpdateParametersRequest:
    """An update with one change; the parameter is the learning rate unless said otherwise."""
    fields.setdefault("parameter", "learning_rate")
    return request(spec=update_pb2.UpdateSpec(changes=[update_pb2.Change(**fields)]))


def setting(*, parameter: str = "learning_rate", mode: Any = 0, **value: Any) -> Any:
    """An update that sets a value: `number=1.0`, `text="x"` …"""
    made = update_pb2.SetChange(value=parameter_pb2.Value(**value), mode=mode)
    return change(parameter=parameter, set=made)


def update(code: Code, reason: str, field: str | None, said: str, asked: Any) -> Bad:
    return Bad("UpdateParameters", asked, code, reason, field, said)


VALUE = "spec.changes[0].set.value"
INVALID, FAILED = Code.INVALID_ARGUMENT, Code.FAILED_PRECONDITION
BAD_UPDATES: dict[str, Bad] = {
    "an unknown job": update(
        Code.NOT_FOUND, "JOB_NOT_FOUND", None, "'no-such-job'", request("no-such-job")
    ),
    "no job": update(INVALID, "INVALID_ARGUMENT", "job", "jobs/{job}", request("")),
    "no change": update(
        INVALID,
        "INVALID_ARGUMENT",
        "spec.changes",
        "got none",
        request(spec=update_pb2.UpdateSpec()),
    ),
    "an unknown parameter": update(
        INVALID,
        "PARAMETER_UNKNOWN",
        "spec.changes[0].parameter",
        "this job offers: gradient_accumulation_steps, learning_rate",
        setting(parameter="lr", number=1e-5),
    ),
    "no parameter": update(
        INVALID,
        "INVALID_ARGUMENT",
        "spec.changes[0].parameter",
        "got none",
        setting(parameter="", number=1e-5),
    ),
    "NaN": update(
        INVALID, "INVALID_ARGUMENT", VALUE, "got nan, allowed: a finite", setting(number=math.nan)
    ),
    "infinity": update(INVALID, "INVALID_ARGUMENT", VALUE, "got inf", setting(number=math.inf)),
    "a negative value": update(
        INVALID, "INVALID_ARGUMENT", VALUE, "got -1e-05, allowed: at least 0", setting(number=-1e-5)
    ),
    "a text for a number": update(
        INVALID, "INVALID_ARGUMENT", VALUE, "got '1e-5' (str), allowed: a", setting(text="1e-5")
    ),
    "a switch for a number": update(
        INVALID, "INVALID_ARGUMENT", VALUE, "got True (bool)", setting(boolean=True)
    ),
    "a fraction for a whole number": update(
        INVALID,
        "INVALID_ARGUMENT",
        VALUE,
        "a whole number",
        setting(parameter="gradient_accumulation_steps", number=2.5),
    ),
    "out of bounds": update(
        INVALID, "INVALID_ARGUMENT", VALUE, "at most 1 (hard limit)", setting(number=1.5)
    ),
    "no value": update(INVALID, "INVALID_ARGUMENT", VALUE, "got none", setting()),
    "a mode that is none": update(
        INVALID,
        "INVALID_ARGUMENT",
        "spec.changes[0].set.mode",
        "got 9, allowed: 0 to 2",
        setting(mode=9, number=1e-5),
    ),
    "no operation": update(
        INVALID, "INVALID_ARGUMENT", "spec.changes[0]", "got no operation", change()
    ),
    "an operation that is not offered": update(
        INVALID,
        "OPERATION_UNSUPPORTED",
        "spec.changes[0]",
        "it offers: set",
        change(
            parameter="gradient_accumulation_steps", multiply=update_pb2.MultiplyChange(factor=2)
        ),
    ),
    "a factor of nothing": update(
        INVALID,
        "INVALID_ARGUMENT",
        "spec.changes[0].multiply.factor",
        "got 0",
        change(multiply=update_pb2.MultiplyChange()),
    ),
    "a schedule without a shape": update(
        INVALID,
        "INVALID_ARGUMENT",
        "spec.changes[0].schedule.shape",
        "LINEAR (1)",
        change(schedule=update_pb2.ScheduleChange()),
    ),
    "a ramp without steps": update(
        INVALID,
        "INVALID_ARGUMENT",
        "spec.changes[0].ramp.steps",
        "got 0, at least 1",
        change(ramp=update_pb2.RampChange(value=parameter_pb2.Value(number=1e-5))),
    ),
    "an unknown group": update(
        INVALID,
        "INVALID_ARGUMENT",
        "spec.changes[0].group",
        "got 'head', groups of learning_rate: 0, 1",
        change(group="head", multiply=update_pb2.MultiplyChange(factor=2)),
    ),
    "a coupling that is none": update(
        INVALID,
        "INVALID_ARGUMENT",
        "spec.changes[0].coupling",
        "got 7",
        change(coupling=7, multiply=update_pb2.MultiplyChange(factor=2)),
    ),
    "a jump": update(FAILED, "GUARD_RAIL", VALUE, "use force to override", setting(number=0.5)),
    "an action without a kind": update(
        INVALID,
        "INVALID_ARGUMENT",
        "spec.action",
        "one is needed",
        request(spec=update_pb2.UpdateSpec(action=update_pb2.Action())),
    ),
    "an action that is not offered": update(
        INVALID,
        "OPERATION_UNSUPPORTED",
        "spec.action",
        "got pause, actions that this job offers: none",
        request(
            spec=update_pb2.UpdateSpec(action=update_pb2.Action(pause=update_pb2.PauseAction()))
        ),
    ),
    "a step in the past": update(
        FAILED,
        "STEP_IN_PAST",
        "spec.apply_at.step",
        "the first step that can still change is 21",
        request(spec=set_rate(apply_at=update_pb2.ApplyAt(step=20))),
    ),
    "a step before the first": update(
        INVALID,
        "INVALID_ARGUMENT",
        "spec.apply_at.step",
        "count from 1",
        request(spec=set_rate(apply_at=update_pb2.ApplyAt(step=0))),
    ),
    "a deadline in the past": update(
        INVALID,
        "DEADLINE_IN_PAST",
        "spec.deadline",
        "already",
        request(spec=set_rate(deadline=Timestamp(seconds=1_700_000_000))),
    ),
    "a deadline that is no time": update(
        INVALID,
        "INVALID_ARGUMENT",
        "spec.deadline",
        "years 1 and 9999",
        request(spec=set_rate(deadline=Timestamp(seconds=2**60))),
    ),
    "a long reason": update(
        INVALID,
        "INVALID_ARGUMENT",
        "spec.reason",
        "got 1001 characters, at most 1000",
        request(spec=set_rate(reason="x" * 1_001)),
    ),
    "an odd request id": update(
        INVALID, "INVALID_ARGUMENT", "request_id", "printable", request(request_id="a b")
    ),
    "a stale revision": update(
        Code.ABORTED,
        "REVISION_MISMATCH",
        None,
        "expected_revision is 7, but the job stands at revision 1",
        request(expected_revision=7),
    ),
    "a request id with other content": update(
        Code.ALREADY_EXISTS,
        "REQUEST_ID_REUSED",
        None,
        "'first' was used for revision 1",
        request(value=3e-5, request_id="first"),
    ),
}
BAD_CALLS: dict[str, Bad] = {
    "an unknown job": Bad(
        "GetJob", pb.GetJobRequest(name="jobs/k"), Code.NOT_FOUND, "JOB_NOT_FOUND"
    ),
    "a name that is none": Bad(
        "GetJob", pb.GetJobRequest(name="k"), INVALID, "INVALID_ARGUMENT", "name"
    ),
    "a job that exists": Bad(
        "CreateJob", pb.CreateJobRequest(job_id="j"), Code.ALREADY_EXISTS, "JOB_EXISTS"
    ),
    "an id that is none": Bad(
        "CreateJob", pb.CreateJobRequest(job_id="J"), INVALID, "INVALID_ARGUMENT", "job_id"
    ),
    "a label that is none": Bad(
        "CreateJob",
        pb.CreateJobRequest(job_id="k", labels={"a": "-"}),
        INVALID,
        "INVALID_ARGUMENT",
        "labels['a']",
    ),
    "a stale etag": Bad(
        "DeleteJob", pb.DeleteJobRequest(name="jobs/j", etag="x"), Code.ABORTED, "ETAG_MISMATCH"
    ),
    "a live job": Bad(
        "DeleteJob", pb.DeleteJobRequest(name="jobs/j"), FAILED, "JOB_HAS_LIVE_SESSION"
    ),
    "a selector that is none": Bad(
        "ListJobs",
        pb.ListJobsRequest(selector="a in"),
        INVALID,
        "SELECTOR_INVALID",
        "selector",
        "expected '('",
    ),
    "a state that is none": Bad(
        "ListJobs",
        pb.ListJobsRequest(states=[job_pb2.JOB_STATE_UNSPECIFIED]),
        INVALID,
        "INVALID_ARGUMENT",
        "states",
        "got 0, allowed: 1 to 7",
    ),
    "a page of less than nothing": Bad(
        "ListJobs", pb.ListJobsRequest(page_size=-1), INVALID, "INVALID_ARGUMENT", "page_size"
    ),
    "a page token that is none": Bad(
        "ListJobs", pb.ListJobsRequest(page_token="zzzz"), INVALID, "PAGE_TOKEN_INVALID"
    ),
    "a page token of another list": Bad(
        "ListUpdates",
        pb.ListUpdatesRequest(parent="jobs/j", page_token=write_token("j", "jobs||[]")),
        INVALID,
        "PAGE_TOKEN_INVALID",
    ),
    "a forged page token": Bad(
        "ListUpdates",
        pb.ListUpdatesRequest(
            parent="jobs/j", page_token=write_token(10**30, "updates|jobs/j|[]|0")
        ),
        INVALID,
        "PAGE_TOKEN_INVALID",
    ),
    "an unknown update": Bad(
        "GetUpdate",
        pb.GetUpdateRequest(name="jobs/j/updates/9"),
        Code.NOT_FOUND,
        "UPDATE_NOT_FOUND",
        None,
        "its newest is 1",
    ),
    "an update that is none": Bad(
        "GetUpdate",
        pb.GetUpdateRequest(name="jobs/j/updates/x"),
        INVALID,
        "INVALID_ARGUMENT",
        "name",
    ),
    "an unknown update to wait for": Bad(
        "WaitUpdate",
        pb.WaitUpdateRequest(name="jobs/j/updates/9"),
        Code.NOT_FOUND,
        "UPDATE_NOT_FOUND",
    ),
    "a time to wait that is none": Bad(
        "WaitUpdate",
        pb.WaitUpdateRequest(name="jobs/j/updates/1", timeout=Duration(seconds=-1)),
        INVALID,
        "INVALID_ARGUMENT",
        "timeout",
    ),
    "an unknown update to cancel": Bad(
        "CancelUpdate",
        pb.CancelUpdateRequest(name="jobs/j/updates/9"),
        Code.NOT_FOUND,
        "UPDATE_NOT_FOUND",
    ),
    "a long reason to cancel": Bad(
        "CancelUpdate",
        pb.CancelUpdateRequest(name="jobs/j/updates/1", reason="x" * 1_001),
        INVALID,
        "INVALID_ARGUMENT",
        "reason",
    ),
    "metrics of an unknown job": Bad(
        "QueryMetrics", pb.QueryMetricsRequest(job="jobs/k"), Code.NOT_FOUND, "JOB_NOT_FOUND"
    ),
    "too few points": Bad(
        "QueryMetrics",
        pb.QueryMetricsRequest(job="jobs/j", max_points=3),
        INVALID,
        "INVALID_ARGUMENT",
        "max_points",
    ),
    "the last less than none": Bad(
        "QueryMetrics",
        pb.QueryMetricsRequest(job="jobs/j", last=-1),
        INVALID,
        "INVALID_ARGUMENT",
        "last",
    ),
    "a position that is none": Bad(
        "WatchJobs", pb.WatchJobsRequest(position="x"), INVALID, "INVALID_ARGUMENT", "position"
    ),
    "a position that is gone": Bad(
        "WatchJobs", pb.WatchJobsRequest(position="p7fffffff"), Code.OUT_OF_RANGE, "POSITION_GONE"
    ),
    "a watch with a bad selector": Bad(
        "WatchJobs", pb.WatchJobsRequest(selector="!"), INVALID, "SELECTOR_INVALID", "selector"
    ),
}


async def everything(plane: RunningPlane) -> Any:
    """All durable state there is."""
    return await plane.plane._store.read(
        lambda tx: [(job, tx.updates(job, limit=99), tx.event_span()) for job in tx.jobs(limit=99)]
    )


async def check(plane: RunningPlane, bad: Bad) -> None:
    call = getattr(plane.control, bad.method)(bad.request)
    error = await error_of(call.read() if bad.method == "WatchJobs" else call)
    assert (error.code, error.reason) == (bad.code, bad.reason), error
    assert error.domain == "midcourse.control"
    assert error.request_id
    if bad.field is not None:
        assert [v.field for v in error.violations] == [bad.field]
        assert bad.said in error.violations[0].description
        assert error.violations[0].description
    assert bad.said in error.message
    assert error.message
    assert "\n" not in error.message


async def test_bad_updates(plane: RunningPlane) -> None:
    agent = await plane.agent()
    await plane.update(request_id="first")
    await agent.receive()
    before = await everything(plane)
    for name, bad in BAD_UPDATES.items():
        await check(plane, bad)
        assert await everything(plane) == before, name
    assert len(agent.of("delivery")) == 1
    assert (await plane.update(expected_revision=1)).revision == 2


async def test_bad_calls(plane: RunningPlane) -> None:
    agent = await plane.agent()
    await plane.update()
    await agent.receive()
    before = await everything(plane)
    for name, bad in BAD_CALLS.items():
        await check(plane, bad)
        assert await everything(plane) == before, name


async def test_a_finished_job(plane: RunningPlane) -> None:
    agent = await plane.agent()
    event = session_pb2.TrainerEvent(finished=session_pb2.TrainingFinished(step=20))
    await agent.acknowledged(await agent.say(event=event))
    before = await everything(plane)
    error = await error_of(plane.control.UpdateParameters(request()))
    assert (error.code, error.reason) == (FAILED, "JOB_FINISHED")
    assert error.metadata == {"state": "FINISHED"}
    assert await everything(plane) == before


async def test_a_job_that_declared_nothing(plane: RunningPlane) -> None:
    await plane.control.CreateJob(pb.CreateJobRequest(job_id="j"))
    error = await error_of(plane.control.UpdateParameters(request()))
    assert (error.code, error.reason) == (FAILED, "JOB_NOT_STARTED")


async def test_a_settled_update_is_not_cancelled(plane: RunningPlane) -> None:
    agent = await plane.agent()
    await plane.update()
    await agent.receive()
    await agent.apply(1)
    asked = pb.CancelUpdateRequest(name="jobs/j/updates/1")
    error = await error_of(plane.control.CancelUpdate(asked))
    assert (error.code, error.reason) == (FAILED, "UPDATE_SETTLED")
    assert error.metadata == {"state": "APPLIED"}


async def test_too_many_open_updates(tmp_path: Path) -> None:
    async with running_plane(tmp_path / "c.db", max_open_updates=1) as plane:
        await plane.agent()
        await plane.update()
        error = await error_of(plane.control.UpdateParameters(request()))
        assert (error.code, error.reason) == (Code.RESOURCE_EXHAUSTED, "TOO_MANY_PENDING")
        assert error.retry_delay == 1.0
        assert (await plane.get_job()).desired.revision == 1


async def test_a_message_that_is_too_large(tmp_path: Path) -> None:
    async with running_plane(tmp_path / "c.db", max_message_bytes=70_000) as plane:
        await plane.agent()
        before = await everything(plane)
        large = request(spec=set_rate(reason="x" * 100_000))
        error = await error_of(plane.control.UpdateParameters(large))
        assert error.code is Code.RESOURCE_EXHAUSTED
        assert "70000" in error.message
        assert await everything(plane) == before


async def test_bytes_that_are_no_message(plane: RunningPlane) -> None:
    method = "/midcourse.control.v1.ControlPlaneService/UpdateParameters"
    call: Any = plane.channel.unary_unary(method)
    error = await error_of(call(b"\xff\xff\xff"))
    assert (error.code, error.reason) == (INVALID, "MALFORMED_REQUEST")


async def test_a_method_that_does_not_exist(plane: RunningPlane) -> None:
    call: Any = plane.channel.unary_unary("/midcourse.control.v1.ControlPlaneService/Nothing")
    assert (await error_of(call(b""))).code is Code.UNIMPLEMENTED


async def test_the_largest_numbers_are_numbers(plane: RunningPlane) -> None:
    """Whatever a field can hold is answered, not failed on."""
    agent = await plane.agent()
    most = 2**64 - 1
    made = await plane.update(
        spec=set_rate(apply_at=update_pb2.ApplyAt(step=2**63 + 5, max_step=most))
    )
    assert (await plane.get_update(1)).spec == made.spec
    (got,) = await agent.receive()
    assert got.spec.apply_at.max_step == most
    answer = await plane.control.QueryMetrics(
        pb.QueryMetricsRequest(job="jobs/j", steps=pb.StepRange(first=most, last=most))
    )
    assert not answer.series
    heartbeat = session_pb2.Heartbeat(
        metrics=[
            session_pb2.MetricColumn(name="loss", steps=[1], values=[1.0], time_micros=[5_000])
        ]
    )
    await agent.acknowledged(await agent.say(heartbeat=heartbeat))
    for steps in (pb.StepRange(last=most), pb.StepRange(first=0, last=2**63)):
        asked = pb.QueryMetricsRequest(job="jobs/j", steps=steps)
        assert len((await plane.control.QueryMetrics(asked)).series) == 1
    asked = pb.QueryMetricsRequest(job="jobs/j", steps=pb.StepRange(first=most))
    assert not (await plane.control.QueryMetrics(asked)).series
    held = setting(number=1e-5, mode=update_pb2.SET_MODE_HOLD)
    held.spec.changes[0].set.hold_steps = most
    kept = await plane.control.UpdateParameters(held)
    assert (await plane.get_update(2)).spec == kept.update.spec
