"""The session protocol, with a real agent process: what the control plane and the trainer see."""

from __future__ import annotations

from typing import TYPE_CHECKING

import grpc

from grpc_runtime.errors import StatusError
from midcourse.agent.v1 import session_pb2
from tests.support.scripted_agent_service import learning_rate_update

if TYPE_CHECKING:
    from tests.support.scripted_agent_service import (
        ScriptedAgentService,
        Stream,
    )
    from tests.trainer_agent.agent.conftest import World


def sequences(stream: Stream) -> list[int]:
    return [request.sequence for request in stream.received]


def steps_of(service: ScriptedAgentService, name: str = "loss") -> list[int]:
    return [
        step
        for request in service.everything("heartbeat")
        for column in request.heartbeat.metrics
        if column.name == name
        for step in column.steps
    ]


async def test_the_control_plane_hears_of_an_agent_when_its_trainer_says_hello(
    world: World, service: ScriptedAgentService
) -> None:
    trainer = await world.trainer()
    await service.until(lambda: len(service.streams) == 1)
    hello = service.stream.hello
    assert (hello.job_id, hello.method, dict(hello.labels)) == ("job", "sft", {"team": "nlp"})
    assert (hello.instance_id, hello.trainer_pid) == ("instance-1", trainer.pid)
    assert hello.state.parameters[0].name == "learning_rate"
    assert hello.agent_id
    await trainer.ready()
    status = await trainer.do("status")
    assert (status["state"], status["agent_pid"]) == ("connected", world.agents()[0])


async def test_updates_arrive_in_order_and_every_nonce_is_answered_once(
    world: World, service: ScriptedAgentService
) -> None:
    trainer = await world.served_trainer()
    for revision in range(1, 21):
        service.stream.deliver(revision, 100 + revision, time_left=5 if revision == 3 else None)
    got = await trainer.poll_until(20)
    assert got == [
        f"delivery {revision}" + (" deadline" if revision == 3 else "") for revision in range(1, 21)
    ]
    await service.until(lambda: len(service.everything("reply")) == 20)
    replies = [request.reply for request in service.everything("reply")]
    assert [reply.nonce for reply in replies] == list(range(101, 121))
    assert all(reply.HasField("received") for reply in replies)


async def test_duplicates_are_answered_and_not_passed_on(
    world: World, service: ScriptedAgentService
) -> None:
    trainer = await world.served_trainer()
    stream = service.stream
    stream.deliver(1, 11)
    assert await trainer.poll_until(1) == ["delivery 1"]
    stream.deliver(1, 12)
    await service.until(lambda: len(stream.of("reply")) == 2)
    await trainer.do("applied", 1, 5)
    await service.until(lambda: len(stream.of("outcome")) == 1)
    stream.deliver(1, 13)
    stream.send(delivery=session_pb2.Delivery(nonce=14))
    await service.until(lambda: len(stream.of("reply")) == 4)
    replies = [request.reply for request in stream.of("reply")]
    assert [(reply.nonce, reply.WhichOneof("result")) for reply in replies] == [
        (11, "received"), (12, "received"), (13, "settled"), (14, "refused"),
    ]  # fmt: skip
    assert replies[2].settled.applied.step == 5
    assert replies[3].refused.reason == "MALFORMED_DELIVERY"
    assert await trainer.poll_until(1) == ["stored [1]"]
    assert sequences(stream) == list(range(1, len(stream.received) + 1))


async def test_an_outcome_goes_at_once_with_a_heartbeat_and_is_kept_until_acknowledged(
    world: World, service: ScriptedAgentService
) -> None:
    service.script.acknowledge = False
    service.script.heartbeat_interval = 3600
    trainer = await world.served_trainer()
    stream = service.stream
    await service.until(lambda: len(stream.of("heartbeat")) == 1)  # the one that begins a session
    await trainer.do("step", 4, {"loss": 1.0})
    await trainer.do("applied", 1, 5)
    await service.until(lambda: len(stream.of("heartbeat")) == 2)
    kinds = [request.WhichOneof("message") for request in stream.received]
    assert kinds == ["hello", "heartbeat", "outcome", "heartbeat"]
    assert steps_of(service) == [4]
    assert await trainer.do("poll") == []
    acknowledgement = session_pb2.Acknowledgement(sequence=stream.received[2].sequence)
    stream.send(acknowledgement=acknowledgement)
    assert await trainer.poll_until(1) == ["stored [1]"]


async def test_every_step_is_folded_into_heartbeats_at_the_servers_interval(
    world: World, service: ScriptedAgentService
) -> None:
    service.script.welcome.max_samples = 40
    trainer = await world.served_trainer()
    for step in range(1, 201):
        await trainer.do("step", step, {"loss": 1.0 / step})
    await service.until(lambda: len(steps_of(service)) >= 200)
    assert steps_of(service) == list(range(1, 201))
    beats = [request.heartbeat for request in service.everything("heartbeat")]
    assert all(sum(len(c.steps) for c in beat.metrics) <= 40 for beat in beats)
    assert len(beats) < 100  # folded: fewer than one for each step
    count = len(beats)
    await service.until(lambda: len(service.everything("heartbeat")) >= count + 3)  # idle too


async def test_a_metric_that_turns_nan_is_told_at_once(
    world: World, service: ScriptedAgentService
) -> None:
    service.script.heartbeat_interval = 3600
    trainer = await world.served_trainer()
    await service.until(lambda: len(service.stream.of("heartbeat")) == 1)
    await trainer.do("step", 1, {"loss": 1.0})
    await trainer.do("step", 2, {"loss": float("nan")})
    await service.until(lambda: steps_of(service) == [1, 2])


async def test_a_withdrawal_reaches_the_trainer_or_is_answered_with_the_outcome(
    world: World, service: ScriptedAgentService
) -> None:
    trainer = await world.served_trainer()
    stream = service.stream
    stream.deliver(1, 11)
    stream.send(withdrawal=session_pb2.Withdrawal(revision=1))
    assert await trainer.poll_until(2) == ["delivery 1", "withdrawal 1"]
    await trainer.do("applied", 1, 5)
    await service.until(lambda: len(stream.outcomes) == 1)
    stream.send(withdrawal=session_pb2.Withdrawal(revision=1))
    await service.until(lambda: len(stream.outcomes) == 2)


async def test_full_state_on_request_and_a_refused_message_do_not_end_the_stream(
    world: World, service: ScriptedAgentService
) -> None:
    service.script.acknowledge = False
    trainer = await world.served_trainer()
    stream = service.stream
    await trainer.do("applied", 1, 5)
    await service.until(lambda: len(stream.of("outcome")) == 1)
    error = session_pb2.MessageError(reason="X", message="y")
    stream.send(item_error=session_pb2.ItemError(sequence=2, error=error))
    stream.send(state_request=session_pb2.StateRequest(reason="gap"))
    await service.until(lambda: len(stream.of("state")) == 1)
    state = stream.of("state")[0].state
    assert [outcome.revision for outcome in state.outcomes] == [1]
    assert [(r.first, r.last) for r in state.in_force] == [(1, 1)]
    assert state.parameters[0].current_value.number == 1e-4
    assert len(service.streams) == 1
    assert any(event["event"] == "message_refused" for event in world.log())


async def test_a_stall_is_told_and_so_is_the_recovery(
    world: World, service: ScriptedAgentService
) -> None:
    service.script.welcome.stall_after.FromMilliseconds(300)
    trainer = await world.served_trainer()
    await trainer.do("step", 7, {})
    await service.until(lambda: len(service.everything("event")) == 1)
    stalled = service.everything("event")[0].event.stalled
    assert stalled.idle.ToMilliseconds() >= 300
    await service.until(
        lambda: (
            service.everything("heartbeat")[-1].heartbeat.phase == session_pb2.TRAINER_PHASE_STALLED
        )
    )
    await trainer.do("step", 8, {})
    await service.until(lambda: len(service.everything("event")) == 2)
    assert service.everything("event")[1].event.recovered.step == 8


async def test_a_paused_trainer_is_heard_of_and_does_not_stall(
    world: World, service: ScriptedAgentService
) -> None:
    service.script.welcome.stall_after.FromMilliseconds(100)
    trainer = await world.served_trainer()
    await trainer.do("step", 7, {"loss": 1.0})
    await trainer.do("phase", "PAUSED")
    paused = session_pb2.TRAINER_PHASE_PAUSED

    def heartbeats() -> list[session_pb2.Heartbeat]:
        return [request.heartbeat for request in service.everything("heartbeat")]

    await service.until(lambda: any(each.phase == paused for each in heartbeats()))
    begun, stalls = len(heartbeats()), len(service.everything("event"))
    # What is logged at the step of the pause, such as an evaluation, does not end it.
    await trainer.do("step", 7, {"eval_loss": 2.0})
    await service.until(lambda: len(heartbeats()) >= begun + 5)
    assert {each.phase for each in heartbeats()[begun:]} == {paused}
    assert not any(each.progress.HasField("steps_per_second") for each in heartbeats()[begun:])
    assert len(service.everything("event")) == stalls
    service.stream.deliver(1, 11)
    assert await trainer.poll_until(1) == ["delivery 1"]
    await service.restart()
    await service.until(lambda: len(service.streams) == 2)
    assert service.stream.hello.state.phase == paused
    await trainer.do("phase", "TRAINING")
    await service.until(lambda: heartbeats()[-1].phase != paused)


async def test_what_the_trainer_changes_by_itself_is_told_until_it_has_a_revision(
    world: World, service: ScriptedAgentService
) -> None:
    trainer = await world.served_trainer()
    first = service.stream
    await trainer.do("local", "guard-1")
    await service.until(lambda: len(first.of("local_update")) == 1)
    told = first.of("local_update")[0].local_update
    assert (told.request_id, told.spec.action.WhichOneof("kind")) == ("guard-1", "pause")
    # Acknowledged, but without a revision: the next stream begins with it.
    await service.restart()
    await service.until(lambda: len(service.streams) == 2)
    assert list(service.stream.hello.state.local_updates) == [told]
    delivery = session_pb2.Delivery(nonce=1, update=learning_rate_update(7))
    delivery.update.request_id = "guard-1"
    service.stream.send(delivery=delivery)
    assert await trainer.poll_until(1) == ["delivery 7"]
    await trainer.do("applied", 7, 5)
    # The trainer tells of it once more, having said so before it saw the revision.
    await trainer.do("phase", "PAUSED")
    await trainer.do("local", "guard-2")
    await service.until(lambda: len(service.stream.of("local_update")) == 1)
    assert service.stream.of("local_update")[0].local_update.request_id == "guard-2"
    await service.restart()
    await service.until(lambda: len(service.streams) == 3)
    assert [each.request_id for each in service.stream.hello.state.local_updates] == ["guard-2"]


async def test_a_fault_in_the_trainer_is_passed_on(
    world: World, service: ScriptedAgentService
) -> None:
    trainer = await world.served_trainer()
    await trainer.do("fault")
    await service.until(lambda: len(service.everything("event")) == 1)
    assert service.everything("event")[0].event.fault.component == "callback"


# ----------------------------------------------------------------------------------- reconnecting


async def test_after_a_crash_of_the_control_plane_what_was_not_on_disk_comes_again(
    world: World, service: ScriptedAgentService
) -> None:
    service.script.acknowledge = False
    trainer = await world.served_trainer()
    first = service.stream
    await trainer.do("step", 1, {"loss": 1.0})
    await trainer.do("applied", 1, 2)
    await service.until(lambda: steps_of(service) == [1] and len(first.of("outcome")) == 1)
    await service.stop()
    await trainer.do("step", 2, {"loss": 0.5})
    await trainer.do("applied", 2, 3)
    service.script.acknowledge = True
    await service.start(int(service.target.rpartition(":")[2]))
    await service.until(lambda: len(service.streams) >= 2)
    again = service.stream
    assert [outcome.revision for outcome in again.hello.state.outcomes] == [1, 2]
    assert again.hello.last_epoch == 1
    assert again.hello.agent_id == first.hello.agent_id
    await service.until(lambda: steps_of(service)[1:] == [1, 2])
    stored: list[str] = []
    while len(stored) < 1:
        stored += await trainer.poll_until(1)
    assert stored == ["stored [1, 2]"]
    again.deliver(3, 1)
    assert await trainer.poll_until(1) == ["delivery 3"]


async def test_go_away_lets_the_agent_finish_and_come_back(
    world: World, service: ScriptedAgentService
) -> None:
    service.script.heartbeat_interval = 3600
    trainer = await world.served_trainer()
    stream = service.stream
    await trainer.do("step", 1, {"loss": 1.0})
    go_away = session_pb2.GoAway(reason="restart")
    go_away.reconnect_delay.FromMilliseconds(50)
    stream.send(go_away=go_away)
    await service.until(lambda: len(service.streams) == 2)
    assert steps_of(service) == [1]
    assert steps_of(service)  # was flushed before the stream ended
    assert stream.of("goodbye") == []
    assert service.stream.hello.last_acknowledged_sequence >= 2


async def test_held_deliveries_of_an_old_stream_are_answered_by_the_new_ones_nonces(
    world: World, service: ScriptedAgentService
) -> None:
    trainer = await world.served_trainer()
    service.stream.deliver(1, 11)
    assert await trainer.poll_until(1) == ["delivery 1"]
    await service.restart()
    await service.until(lambda: len(service.streams) == 2)
    service.stream.deliver(1, 5)
    service.stream.deliver(2, 6)
    assert await trainer.poll_until(1) == ["delivery 2"]  # this connection has 1 already
    await service.until(lambda: len(service.stream.of("reply")) == 2)
    assert [request.reply.nonce for request in service.stream.of("reply")] == [5, 6]


async def test_a_superseded_instance_is_told_so_and_never_comes_back(
    world: World, service: ScriptedAgentService
) -> None:
    trainer = await world.served_trainer()
    error = StatusError(
        grpc.StatusCode.FAILED_PRECONDITION, "process 9 has the job", reason="INSTANCE_SUPERSEDED"
    )
    # When a message is just being sent, gRPC may lose the status; then the next hello brings it.
    service.script.refuse_hello = lambda _hello: error
    service.stream.fail(error)
    assert await trainer.poll_until(1) == ["detached INSTANCE_SUPERSEDED"]
    status = await trainer.do("status")
    assert (status["state"], status["message"]) == ("detached", "process 9 has the job")
    await world.until_gone(world.agents()[0])
    streams = len(service.streams)
    assert streams <= 2
    await trainer.do("step", 1, {"loss": 1.0})
    assert await trainer.do("poll") == []
    assert not await trainer.do("wait_ready", 0.3)
    assert len(service.streams) == streams
    assert len(world.agents()) == 1


async def test_a_refused_hello_detaches_the_trainer_with_the_reason(
    world: World, service: ScriptedAgentService
) -> None:
    service.script.refuse_hello = lambda _hello: StatusError(
        grpc.StatusCode.INVALID_ARGUMENT,
        "version 1 is too old",
        reason="PROTOCOL_VERSION_UNSUPPORTED",
    )
    trainer = await world.served_trainer()
    assert await trainer.poll_until(1) == ["detached PROTOCOL_VERSION_UNSUPPORTED"]
    status = await trainer.do("status")
    assert (status["state"], status["message"]) == ("detached", "version 1 is too old")


async def test_a_fenced_agent_that_has_the_trainer_takes_the_session_back(
    world: World, service: ScriptedAgentService
) -> None:
    await world.served_trainer()
    error = StatusError(grpc.StatusCode.ABORTED, "replaced", reason="SESSION_FENCED")
    service.stream.fail(error)
    await service.until(lambda: len(service.streams) == 2)


async def test_an_overloaded_server_is_given_the_time_it_asked_for(
    world: World, service: ScriptedAgentService
) -> None:
    refusals = iter([0.5])
    times: list[float] = []

    def refuse(_hello: session_pb2.Hello) -> StatusError | None:
        import time

        times.append(time.monotonic())
        delay = next(refusals, None)
        if delay is None:
            return None
        return StatusError(
            grpc.StatusCode.RESOURCE_EXHAUSTED, "full", reason="FULL", retry_delay=delay
        )

    service.script.refuse_hello = refuse
    await world.served_trainer()
    await service.until(lambda: len(service.streams) == 2)
    assert times[1] - times[0] >= 0.5
