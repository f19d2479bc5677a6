"""AgentService/Session over a real stream."""

from __future__ import annotations

import asyncio
import math
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration

from grpc_runtime.errors import StatusError
from midcourse.agent.v1 import session_pb2 as pb
from midcourse.control.v1 import control_pb2, job_pb2, update_pb2
from tests.support.plane import (
    RunningPlane,
    callers,
    error_of,
    request,
    running_plane,
    set_rate,
)
from tests.support.scripted_agent import ScriptedAgent, applied, hello


async def refused(plane: RunningPlane, greeting: pb.Hello) -> StatusError:
    agent = ScriptedAgent(plane.agents)
    agent.hello = greeting
    with pytest.raises(StatusError) as error:
        await agent.connect()
    return error.value


async def no_jobs(plane: RunningPlane) -> bool:
    return not (await plane.control.ListJobs(control_pb2.ListJobsRequest())).jobs


async def test_an_update_goes_there_and_its_outcome_comes_back(plane: RunningPlane) -> None:
    agent = await plane.agent(labels={"team": "nlp"})
    made = await plane.update(request_id="r")
    assert made.state == update_pb2.UPDATE_STATE_PENDING
    (got,) = await agent.receive()
    assert got.spec == made.spec
    waiting = asyncio.ensure_future(plane.wait(1))
    await agent.apply(1, step=33)
    done = await waiting
    assert done.state == update_pb2.UPDATE_STATE_APPLIED
    assert done.applied.step == 33
    assert done.applied.transitions[0].new_value.number == 1e-5
    assert done.deliver_time.ToNanoseconds() >= done.create_time.ToNanoseconds()
    job = await plane.get_job()
    assert job.state == job_pb2.JOB_STATE_RUNNING
    assert job.session.connected
    assert job.session.epoch == 1
    assert (job.desired.revision, job.effective.revision) == (1, 1)
    assert job.last_update == done
    assert job.progress.step == 20
    assert job.heartbeat_interval.ToSeconds() == 60


async def test_another_protocol_version(plane: RunningPlane) -> None:
    error = await refused(plane, hello(protocol_version=7))
    assert (error.code, error.reason) == (
        grpc.StatusCode.FAILED_PRECONDITION,
        "PROTOCOL_VERSION_UNSUPPORTED",
    )
    assert error.metadata == {"supported": "1", "got": "7"}
    assert error.domain == "midcourse.control"
    assert "7" in error.message
    assert await no_jobs(plane)


async def test_the_version_is_told_even_where_a_newer_hello_makes_no_sense(
    plane: RunningPlane,
) -> None:
    error = await refused(plane, pb.Hello(protocol_version=2))
    assert error.reason == "PROTOCOL_VERSION_UNSUPPORTED"


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"job_id": "No Such"}, "job_id"),
        ({"job_id": ""}, "job_id"),
        ({"instance_id": ""}, "hello.instance_id"),
        ({"agent_id": ""}, "hello.agent_id"),
        ({"labels": {"a b": ""}}, "labels['a b']"),
        ({"start_step": 2**63}, "hello.start_step"),
    ],
)
async def test_a_bad_hello(plane: RunningPlane, fields: dict[str, Any], field: str) -> None:
    error = await refused(plane, hello(**fields))
    assert error.code is grpc.StatusCode.INVALID_ARGUMENT
    assert [v.field for v in error.violations] == [field]
    assert await no_jobs(plane)


async def test_a_stream_that_does_not_begin_with_hello(plane: RunningPlane) -> None:
    call = plane.agents.Session()
    await call.write(pb.SessionRequest(sequence=1, heartbeat=pb.Heartbeat()))
    error = await error_of(call.read())
    assert (error.code, error.reason) == (
        grpc.StatusCode.INVALID_ARGUMENT,
        "PROTOCOL_VIOLATION",
    )
    assert "it began with heartbeat" in error.message
    assert await no_jobs(plane)


async def test_a_stream_that_says_nothing(plane: RunningPlane) -> None:
    call = plane.agents.Session()
    await call.done_writing()
    assert await call.read() is grpc.aio.EOF
    assert await call.code() is grpc.StatusCode.OK


async def test_a_second_agent_fences_the_first_one(plane: RunningPlane) -> None:
    first = await plane.agent(instance_id="one")
    second = await plane.agent(instance_id="two")
    ended = await first.end()
    assert ended is not None
    assert (ended.code, ended.reason) == (
        grpc.StatusCode.FAILED_PRECONDITION,
        "INSTANCE_SUPERSEDED",
    )
    assert "instance two" in ended.message
    with pytest.raises(StatusError) as refusal:
        await first.connect()
    assert refusal.value.reason == "INSTANCE_SUPERSEDED"
    await plane.update()
    await second.receive()
    job = await plane.get_job()
    assert (job.session.instance_id, job.session.connected) == ("two", True)


async def test_the_same_process_over_a_new_stream_ends_the_old_one(plane: RunningPlane) -> None:
    first, again = await plane.agent(), await plane.agent()
    ended = await first.end()
    assert ended is not None
    assert (ended.code, ended.reason) == (grpc.StatusCode.ABORTED, "SESSION_FENCED")
    await plane.update()
    await again.receive()


async def test_a_message_with_an_old_number_ends_the_stream(plane: RunningPlane) -> None:
    agent = await plane.agent()
    await agent.say_as(1, goodbye=pb.Goodbye())
    ended = await agent.end()
    assert ended is not None
    assert (ended.code, ended.reason) == (
        grpc.StatusCode.INVALID_ARGUMENT,
        "SEQUENCE_REGRESSED",
    )
    assert ended.metadata == {"expected": "2", "got": "1"}


async def test_a_gap_asks_for_state(plane: RunningPlane) -> None:
    agent = await plane.agent()
    agent.number += 3
    await agent.say(heartbeat=pb.Heartbeat())
    await agent.wait_for("state_request")
    state = hello().state
    state.progress.step = 44
    number = await agent.say(state=state)
    await agent.acknowledged(number)
    assert (await plane.get_job()).progress.step == 44


def column(**fields: Any) -> pb.Heartbeat:
    given: dict[str, Any] = {
        "name": "loss",
        "steps": [1],
        "values": [1.0],
        "time_micros": [1_700_000_000_000_000],
    }
    return pb.Heartbeat(metrics=[pb.MetricColumn(**{**given, **fields})])


BAD_MESSAGES: dict[str, dict[str, Any]] = {
    "nothing": {},
    "a second hello": {"hello": hello()},
    "a reply to nothing": {"reply": pb.DeliveryReply(nonce=5, received=pb.DeliveryReceived())},
    "a reply without a result": {"reply": pb.DeliveryReply(nonce=5)},
    "an outcome without a result": {"outcome": pb.UpdateOutcome(revision=1)},
    "an outcome beyond counting": {"outcome": applied(2**63)},
    "an event without a kind": {"event": pb.TrainerEvent()},
    "a duration beyond counting": {
        "event": pb.TrainerEvent(stalled=pb.Stalled(idle=Duration(seconds=2**62)))
    },
    "uneven columns": {"heartbeat": column(values=[1.0, 2.0])},
    "a nameless metric": {"heartbeat": column(name="")},
    "a step beyond counting": {"heartbeat": column(steps=[2**63])},
    "a time beyond the calendar": {"heartbeat": column(time_micros=[2**62])},
    "a time before the calendar": {"heartbeat": column(time_micros=[-(2**62)])},
    "progress beyond counting": {"heartbeat": pb.Heartbeat(progress=job_pb2.Progress(step=2**63))},
    "dropped beyond counting": {"heartbeat": pb.Heartbeat(dropped_samples=2**63)},
    "state beyond counting": {"state": pb.FullState(outcomes=[applied(2**63)])},
    "state upside down": {"state": pb.FullState(in_force=[pb.RevisionRange(first=2, last=1)])},
}


async def test_one_bad_message_gets_an_error_of_its_own_and_harms_nothing(
    plane: RunningPlane,
) -> None:
    agent = await plane.agent()
    etag = (await plane.get_job()).etag
    numbers = {name: await agent.say(**message) for name, message in BAD_MESSAGES.items()}
    await agent.acknowledged(max(numbers.values()))
    errors = {each.item_error.sequence: each.item_error.error for each in agent.of("item_error")}
    assert set(errors) == set(numbers.values()), {
        name: errors.get(number) for name, number in numbers.items()
    }
    for error in errors.values():
        assert error.reason in ("INVALID_ARGUMENT", "PROTOCOL_VIOLATION")
        assert error.message
    assert (await plane.get_job()).etag == etag
    await plane.update()
    await agent.receive()
    await agent.apply(1)
    number = await agent.say(heartbeat=column())
    await agent.acknowledged(number)
    answer = await plane.control.QueryMetrics(control_pb2.QueryMetricsRequest(job="jobs/j"))
    assert [list(s.steps) for s in answer.series] == [[1]]


async def test_what_is_no_number_is_measured_too(plane: RunningPlane) -> None:
    agent = await plane.agent()
    values = [1.0, math.nan, math.inf, -math.inf]
    times = [1_700_000_000_000_000 + i for i in range(4)]
    number = await agent.say(heartbeat=column(steps=[1, 2, 3, 4], values=values, time_micros=times))
    await agent.acknowledged(number)
    answer = await plane.control.QueryMetrics(control_pb2.QueryMetricsRequest(job="jobs/j"))
    (series,) = answer.series
    assert list(map(repr, series.values)) == list(map(repr, values))
    assert list(series.time_micros) == times
    assert (series.statistics.count, series.statistics.non_finite_count) == (4, 3)
    assert (await plane.get_job()).metrics[0].value == -math.inf


async def test_a_message_that_is_too_large_ends_the_stream_alone(tmp_path: Path) -> None:
    async with running_plane(tmp_path / "c.db", max_message_bytes=70_000) as plane:
        agent, other = await plane.agent(), await plane.agent("other")
        assert agent.of("welcome")[0].welcome.max_message_bytes == 70_000
        await agent.say(heartbeat=column(name="x" * 100_000))
        ended = await agent.end()
        assert ended is not None
        assert ended.code is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "100" in ended.message
        await agent.connect()
        await plane.update(job="other")
        await other.receive()


async def test_goodbye_ends_the_stream_in_good_order(plane: RunningPlane) -> None:
    agent = await plane.agent()
    await plane.update()
    await agent.receive()
    number = await agent.say(outcome=applied(1))
    number = await agent.say(heartbeat=column())
    await agent.acknowledged(number)
    await agent.say(goodbye=pb.Goodbye(reason="done"))
    assert await agent.end() is None
    assert (await plane.wait(1)).state == update_pb2.UPDATE_STATE_APPLIED
    assert not (await plane.get_job()).session.connected


async def test_a_broken_stream_is_noticed_and_resumed(plane: RunningPlane) -> None:
    agent = await plane.agent()
    await agent.leave()
    watch = plane.control.WatchJobs(control_pb2.WatchJobsRequest(name="jobs/j"))
    async with asyncio.timeout(10):
        async for event in watch:
            if event.HasField("job") and not event.job.session.connected:
                break
    watch.cancel()
    await plane.update()
    await plane.update()
    await agent.connect()
    assert [u.revision for u in await agent.receive(2)] == [1, 2]


async def test_deleting_a_job_waits_for_its_stream_to_end(plane: RunningPlane) -> None:
    agent = await plane.agent()
    with pytest.raises(grpc.aio.AioRpcError) as refusal:
        await plane.control.DeleteJob(control_pb2.DeleteJobRequest(name="jobs/j"))
    assert refusal.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    await agent.say(goodbye=pb.Goodbye())
    await agent.end()
    await plane.control.DeleteJob(control_pb2.DeleteJobRequest(name="jobs/j"))
    assert await no_jobs(plane)


async def test_a_drain_asks_to_go_and_everything_is_there_on_the_next_server(
    tmp_path: Path,
) -> None:
    database = tmp_path / "c.db"
    async with running_plane(database) as first:
        agent = await first.agent()
        await first.update(request_id="a")
        await agent.receive()
        stopping = asyncio.ensure_future(first.plane.service.stop())
        (away,) = await agent.wait_for("go_away")
        assert 0 < away.go_away.reconnect_delay.ToMilliseconds() <= 1_000
        # What is on its way still counts.
        await agent.apply(1)
        await agent.say(goodbye=pb.Goodbye())
        assert await agent.end() is None
        await asyncio.wait_for(stopping, 5)
    async with running_plane(database) as second:
        again = await second.agent()
        assert again.of("welcome")[0].welcome.epoch == 2
        assert (await second.get_update(1)).applied.step == 21
        assert (await second.update(request_id="a")).revision == 1


async def test_an_agent_that_does_not_go_is_cut_off_within_the_grace(tmp_path: Path) -> None:
    loop = asyncio.get_running_loop()
    async with running_plane(tmp_path / "c.db", grace=0.3) as plane, callers(plane.address) as own:
        agent = await own.agent()
        began = loop.time()
        await plane.plane.service.stop()
        assert loop.time() - began < 10
        assert len(agent.of("go_away")) == 1
        ended = await agent.end()
        assert ended is not None
        assert ended.code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)
    async with running_plane(tmp_path / "c.db") as second:
        stored = await second.plane._store.read(lambda tx: tx.job("j"))
        assert stored is not None
        assert stored.session is not None
        assert not stored.session.connected, "the cut was noticed before the store was closed"


async def test_many_updates_at_once_come_in_order(plane: RunningPlane) -> None:
    agent = await plane.agent()
    async with callers(plane.address) as other:
        await asyncio.gather(
            *((plane, other)[i % 2].control.UpdateParameters(request()) for i in range(40))
        )
    got = await agent.receive(40)
    assert [u.revision for u in got] == list(range(1, 41))
    assert {len(u.request_id) > 0 for u in got} == {True}
    assert got[0].spec == set_rate()
