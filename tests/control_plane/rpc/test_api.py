"""ControlPlaneService as callers see it, and what of it outlives the server."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.json_format import ParseDict
from grpc_health.v1 import health_pb2, health_pb2_grpc

from control_plane.domain.update import ActionKind
from control_plane.rpc import convert_parameter, convert_update
from grpc_runtime.listen import ListenError
from midcourse.agent.v1 import session_pb2
from midcourse.control.v1 import control_pb2 as pb
from midcourse.control.v1 import job_pb2, parameter_pb2, update_pb2
from tests.support.plane import RunningPlane, error_of, request, running_plane, set_rate
from tests.support.scripted_agent import ScriptedAgent, hello
from tests.support.use_cases import eventually


async def names(plane: RunningPlane, **asked: Any) -> list[list[str]]:
    """Names of jobs, page by page."""
    pages, token = [], ""
    while True:
        page = await plane.control.ListJobs(pb.ListJobsRequest(page_token=token, **asked))
        pages.append([job.name for job in page.jobs])
        token = page.next_page_token
        if not token:
            return pages


async def test_jobs_are_created_listed_and_deleted(plane: RunningPlane) -> None:
    would = pb.CreateJobRequest(job_id="a", labels={"team": "nlp"}, method="dpo")
    would.validate_only = True
    await plane.control.CreateJob(would)
    assert await names(plane) == [[]]
    for job_id in "abc":
        made = await plane.control.CreateJob(
            pb.CreateJobRequest(job_id=job_id, labels={"n": job_id}, method="dpo")
        )
        assert made.job.name == f"jobs/{job_id}"
        assert made.job.state == job_pb2.JOB_STATE_PENDING
        assert not made.job.HasField("session")
        assert not made.job.HasField("heartbeat_interval")
        assert not made.job.HasField("progress")
    assert await names(plane, page_size=2) == [["jobs/a", "jobs/b"], ["jobs/c"]]
    assert await names(plane, selector="n in (a,c)", page_size=1) == [["jobs/a"], ["jobs/c"]]
    assert await names(plane, states=[job_pb2.JOB_STATE_RUNNING]) == [[]]
    await plane.control.DeleteJob(pb.DeleteJobRequest(name="jobs/b", etag=""))
    assert await names(plane) == [["jobs/a", "jobs/c"]]


async def test_to_validate_changes_nothing(plane: RunningPlane) -> None:
    agent = await plane.agent()
    would_be = await plane.update(validate_only=True)
    assert (would_be.revision, would_be.name) == (1, "jobs/j/updates/1")
    assert (await plane.get_job()).desired.revision == 0
    assert (await plane.update()).revision == 1
    assert len(await agent.receive()) == 1


async def test_the_author_comes_from_the_call(plane: RunningPlane) -> None:
    await plane.agent()
    made = await plane.update(spec=set_rate(reason="loss rises"))
    assert made.author
    assert made.spec.reason == "loss rises"


async def test_waiting_ends_before_the_calls_deadline(plane: RunningPlane) -> None:
    await plane.agent()
    await plane.update()
    asked = pb.WaitUpdateRequest(name="jobs/j/updates/1")
    answer = await plane.control.WaitUpdate(asked, timeout=0.4)
    assert answer.update.state == update_pb2.UPDATE_STATE_PENDING
    asked.timeout.FromMilliseconds(1)
    assert (await plane.control.WaitUpdate(asked)).update.revision == 1


async def test_cancelling_asks_the_trainer(plane: RunningPlane) -> None:
    agent = await plane.agent()
    await plane.update()
    await agent.receive()
    asked = pb.CancelUpdateRequest(name="jobs/j/updates/1", reason="no", timeout=Duration())
    pending = (await plane.control.CancelUpdate(asked)).update
    assert pending.cancel_requested
    assert pending.state == update_pb2.UPDATE_STATE_DELIVERED
    (withdrawal,) = await agent.wait_for("withdrawal")
    assert withdrawal.withdrawal.revision == 1
    outcome = session_pb2.UpdateOutcome(revision=1, withdrawn=session_pb2.Withdrawn())
    await agent.say(outcome=outcome)
    done = await plane.wait(1)
    assert done.state == update_pb2.UPDATE_STATE_CANCELLED
    assert done.cancelled.reason == "no"
    assert not done.cancel_requested


async def test_a_watch_tells_what_happens(plane: RunningPlane) -> None:
    watch = plane.control.WatchJobs(pb.WatchJobsRequest(selector="method=sft"))
    assert (await watch.read()).type == pb.JOB_EVENT_TYPE_BOOKMARK
    agent = await plane.agent()
    await plane.update()
    await agent.receive()
    await agent.apply(1)
    seen: list[pb.WatchJobsResponse] = []
    async with asyncio.timeout(10):
        while not seen or not seen[-1].update.HasField("applied"):
            seen.append(await watch.read())
    assert {event.job.name for event in seen} == {"jobs/j"}
    assert all(event.position for event in seen)
    watch.cancel()
    # From its second event on, once more.
    again = plane.control.WatchJobs(pb.WatchJobsRequest(position=seen[0].position))
    for event in seen[1:]:
        assert (await again.read()).position == event.position
    again.cancel()


async def test_a_watch_that_is_cancelled_leaves_nothing(plane: RunningPlane) -> None:
    for _ in range(3):
        watch = plane.control.WatchJobs(pb.WatchJobsRequest())
        await watch.read()
        watch.cancel()
    bus = plane.plane.bus
    await eventually(lambda: not bus._subscribers.get("jobs"), "that no watch is left")


async def test_health_is_told(plane: RunningPlane) -> None:
    stub: Any = health_pb2_grpc.HealthStub(plane.channel)
    for service in ("", "midcourse.control.v1.ControlPlaneService"):
        answer = await stub.Check(health_pb2.HealthCheckRequest(service=service))
        assert answer.status == health_pb2.HealthCheckResponse.SERVING


async def test_a_restart_loses_nothing_and_tokens_are_still_good(tmp_path: Path) -> None:
    database = tmp_path / "control.db"
    async with running_plane(database) as first:
        agent = await first.agent()
        for _ in range(5):
            await first.update()
        await agent.receive(5)
        await agent.apply(1, step=30)
        for job_id in "xyz":
            await first.control.CreateJob(pb.CreateJobRequest(job_id=job_id))
        jobs = await first.control.ListJobs(pb.ListJobsRequest(page_size=2))
        listed = pb.ListUpdatesRequest(parent="jobs/j", page_size=2)
        updates = await first.control.ListUpdates(listed)
        watch = first.control.WatchJobs(pb.WatchJobsRequest())
        while (event := await watch.read()).type != pb.JOB_EVENT_TYPE_BOOKMARK:
            pass
        position = event.position
        watch.cancel()
        await agent.say(goodbye=session_pb2.Goodbye())
        await agent.end()
        before = await first.get_job()
        everything = await first.control.ListUpdates(pb.ListUpdatesRequest(parent="jobs/j"))
    async with running_plane(database) as second:
        assert await second.get_job() == before
        assert (
            await second.control.ListUpdates(pb.ListUpdatesRequest(parent="jobs/j"))
        ) == everything
        more_jobs = await second.control.ListJobs(
            pb.ListJobsRequest(page_size=2, page_token=jobs.next_page_token)
        )
        assert [job.name for job in (*jobs.jobs, *more_jobs.jobs)] == [
            *("jobs/j", "jobs/x", "jobs/y", "jobs/z")
        ]
        listed.page_token = updates.next_page_token
        more = await second.control.ListUpdates(listed)
        assert [u.revision for u in (*updates.updates, *more.updates)] == [5, 4, 3, 2]
        resumed = second.control.WatchJobs(pb.WatchJobsRequest(position=position))
        closed = await asyncio.wait_for(resumed.read(), 10)
        assert (closed.type, closed.job.name) == (pb.JOB_EVENT_TYPE_MODIFIED, "jobs/j")
        assert not closed.job.session.connected
        resumed.cancel()
        assert (await second.update()).revision == 6


async def test_readings_reach_the_job_and_its_guard_rail(plane: RunningPlane) -> None:
    agent = await plane.agent()
    moved = update_pb2.ParameterReading(
        parameter="learning_rate", value=parameter_pb2.Value(number=1e-7)
    )
    number = await agent.say(heartbeat=session_pb2.Heartbeat(readings=[moved]))
    await agent.acknowledged(number)
    error = await error_of(plane.control.UpdateParameters(request(value=2e-5)))
    assert error.reason == "GUARD_RAIL"


async def test_a_trainers_actions_are_offered(plane: RunningPlane) -> None:
    greeting = hello()
    of_a_newer_version: Any = 99
    greeting.state.actions.extend([update_pb2.ACTION_KIND_PAUSE, of_a_newer_version])
    agent = ScriptedAgent(plane.agents)
    agent.hello = greeting
    await agent.connect()
    assert list((await plane.get_job()).actions) == [update_pb2.ACTION_KIND_PAUSE]
    pause = update_pb2.UpdateSpec(action=update_pb2.Action(pause=update_pb2.PauseAction()))
    await plane.update(spec=pause)
    (got,) = await agent.receive()
    assert got.spec.action.WhichOneof("kind") == "pause"


OPERATIONS: list[dict[str, Any]] = [
    {"set": {"value": {"integer": -(2**63)}}, "coupling": 2},
    {"set": {"value": {"boolean": False}, "mode": 1}},
    {"set": {"value": {"text": ""}, "mode": 2, "hold_steps": 7}},
    {"multiply": {"factor": 0.5}},
    {"ramp": {"value": {"number": 0.0}, "steps": 3}},
    {"schedule": {"shape": 2, "peak": 0.0, "floor": 0.1, "steps": 3, "warmup_steps": 1}},
    {"schedule": {"shape": 3}},
    {"release": {}},
]
SPECS: list[dict[str, Any]] = [
    *({"action": {kind.value: {}}} for kind in ActionKind),
    {"action": {"roll_back": {"checkpoint": "/c/10"}}},
    {"changes": [{"parameter": "p", "release": {}}], "force": True, "reason": "ü"},
    {"apply_at": {"step": 5}},
    {"apply_at": {"max_step": 5}},
    {"deadline": "2030-01-02T03:04:05.678901Z"},
    *({"changes": [{"parameter": "p", "group": "0", **each}]} for each in OPERATIONS),
]


@pytest.mark.parametrize("fields", SPECS, ids=str)
def test_a_spec_reads_back_as_it_was_sent(fields: dict[str, Any]) -> None:
    spec = ParseDict(fields, update_pb2.UpdateSpec())
    assert convert_update.spec(convert_update.spec_of(spec)) == spec


def test_a_declaration_reads_back_as_it_was_sent() -> None:
    for each in hello().state.parameters:
        known = convert_parameter.spec_of(each, "p")
        told = convert_parameter.spec(known)
        if each.name == "learning_rate":
            assert told.guard_rails.max_relative_change == 10
        told.ClearField("guard_rails")
        assert told == each


async def test_settings_that_do_not_go_together_leave_no_database_behind(tmp_path: Path) -> None:
    with pytest.raises(ListenError):
        async with running_plane(tmp_path / "a.db", listen="0.0.0.0:0"):
            raise AssertionError("it listens to everybody")
    assert not (tmp_path / "a.db").exists()
    async with running_plane(tmp_path / "a.db") as free:
        assert isinstance(free.channel, grpc.aio.Channel)


async def test_an_address_that_is_taken_is_told_and_nothing_stays_open(tmp_path: Path) -> None:
    async with running_plane(tmp_path / "a.db") as first:
        with pytest.raises(Exception, match=first.address):
            async with running_plane(tmp_path / "b.db", listen=first.address):
                raise AssertionError("it listens twice")
    async with running_plane(tmp_path / "b.db") as free:
        assert isinstance(free.channel, grpc.aio.Channel)


async def test_an_order_that_there_is_not_is_refused(plane: RunningPlane) -> None:
    await plane.control.CreateJob(pb.CreateJobRequest(job_id="a"))
    asked: Any = pb.ListUpdatesRequest(parent="jobs/a")
    asked.order = 7
    error = await error_of(plane.control.ListUpdates(asked))
    assert error.code is grpc.StatusCode.INVALID_ARGUMENT
    assert [violation.field for violation in error.violations] == ["order"]
