"""Actions, and what a training process changes by itself, over real streams."""

from __future__ import annotations

from typing import Any

from midcourse.agent.v1 import session_pb2 as pb
from midcourse.control.v1 import control_pb2, job_pb2, update_pb2
from tests.support.plane import RunningPlane, set_rate
from tests.support.scripted_agent import ACCUMULATION, LEARNING_RATE, ScriptedAgent, applied


def state(**fields: Any) -> pb.FullState:
    made = pb.FullState(
        parameters=[LEARNING_RATE, ACCUMULATION],
        actions=[
            update_pb2.ACTION_KIND_PAUSE,
            update_pb2.ACTION_KIND_EVALUATE,
            update_pb2.ACTION_KIND_ROLL_BACK,
        ],
        phase=pb.TRAINER_PHASE_TRAINING,
        **fields,
    )
    made.progress.step = 20
    return made


def cut(request_id: str) -> pb.LocalUpdate:
    local = pb.LocalUpdate(request_id=request_id)
    local.spec.reason = "loss is not finite"
    local.spec.changes.add(parameter="learning_rate").multiply.factor = 0.01
    local.spec.action.pause.SetInParent()
    return local


async def received(agent: ScriptedAgent, count: int) -> update_pb2.Update:
    return (await agent.receive(count))[-1]


async def test_an_action_goes_there_and_what_it_led_to_comes_back(plane: RunningPlane) -> None:
    agent = await plane.agent(state=state())
    asked = update_pb2.UpdateSpec(reason="how is it?")
    asked.action.evaluate.SetInParent()
    await plane.update(spec=asked)
    assert (await received(agent, 1)).spec == asked
    outcome = pb.UpdateOutcome(revision=1)
    outcome.applied.step = 21
    outcome.applied.action_result.metrics["eval_loss"] = 1.25
    await agent.acknowledged(await agent.say(outcome=outcome))
    update = await plane.wait(1)
    assert update.state == update_pb2.UPDATE_STATE_APPLIED
    assert update.applied.action_result == outcome.applied.action_result
    await agent.acknowledged(await agent.say(heartbeat=pb.Heartbeat(phase=pb.TRAINER_PHASE_PAUSED)))
    job = await plane.get_job()
    assert job.state == job_pb2.JOB_STATE_PAUSED
    assert list(job.actions) == list(state().actions)


async def test_an_update_of_the_guard(plane: RunningPlane) -> None:
    agent = await plane.agent(state=state())
    number = await agent.say(local_update=cut("guard-1"))
    got = await received(agent, 1)
    await agent.acknowledged(number)
    assert (got.author, got.request_id, got.revision) == ("guard", "guard-1", 1)
    assert got.spec == cut("").spec
    await agent.apply(1)
    assert (await plane.get_update(1)).state == update_pb2.UPDATE_STATE_APPLIED
    # One that makes no sense costs neither the stream nor, in a hello, the session.
    await agent.say(local_update=pb.LocalUpdate(request_id="guard-2"))
    (error,) = await agent.wait_for("item_error")
    assert error.item_error.error.reason == "INVALID_ARGUMENT"
    unknown = cut("guard-3")
    unknown.spec.changes[0].schedule.SetInParent()
    await agent.leave()
    agent.hello.state.CopyFrom(state(local_updates=[unknown, cut("guard-4")]))
    await agent.connect()
    deliveries = [each.delivery.update for each in await agent.wait_for("delivery", 2)]
    assert [(u.revision, u.request_id) for u in deliveries][-1] == (2, "guard-4")


async def test_what_was_rolled_back_says_so_and_is_not_sent_again(plane: RunningPlane) -> None:
    agent = await plane.agent(state=state())
    await plane.update(spec=set_rate())
    await received(agent, 1)
    await agent.apply(1, step=41)
    await plane.update(spec=set_rate(3e-5))
    await received(agent, 2)
    await agent.apply(2, step=50)
    asked = set_rate(5e-6)
    asked.action.roll_back.checkpoint = "/runs/checkpoint-40"
    await plane.update(spec=asked)
    await received(agent, 3)
    await agent.leave()
    # It was saved at the boundary at which the first one was applied.
    contained = state(in_force=[pb.RevisionRange(first=1, last=1)])
    came_back = state(in_force=[*contained.in_force, pb.RevisionRange(first=3, last=3)], held=[3])
    back = await plane.agent(instance_id="two", start_step=40, state=came_back)
    answer = await plane.control.ListUpdates(control_pb2.ListUpdatesRequest(parent="jobs/j"))
    assert [(u.revision, u.rolled_back_by) for u in answer.updates] == [(3, 0), (2, 3), (1, 0)]
    assert answer.updates[1].state == update_pb2.UPDATE_STATE_APPLIED
    await plane.update(spec=set_rate(7e-6))
    assert [u.revision for u in await back.receive(1)] == [4]  # and nothing before it
    await back.apply(3, step=41)
    await back.leave()
    # A crash; the checkpoint is the same, which does not know of the roll back.
    resumed = await plane.agent(instance_id="three", start_step=40, state=contained)
    assert [u.revision for u in await resumed.receive(2)] == [3, 4]
    desired = (await plane.get_job()).desired.parameters
    assert [each.revision for each in desired] == [4]


async def test_the_guards_doings_that_were_rolled_back(plane: RunningPlane) -> None:
    again = cut("guard-2")
    again.spec.action.roll_back.SetInParent()
    agent = await plane.agent(start_step=20, state=state(local_updates=[cut("guard-1"), again]))
    await agent.receive(2)
    outcome = applied(1, 25, "instance-0")
    outcome.rolled_back = True
    await agent.acknowledged(await agent.say(outcome=outcome))
    update = await plane.get_update(1)
    assert (update.applied.step, update.rolled_back_by) == (25, 2)


async def test_a_history_says_which_steps_are_the_runs_own(plane: RunningPlane) -> None:
    agent = await plane.agent(state=state())
    await plane.update(spec=set_rate())
    await received(agent, 1)
    await agent.apply(1)
    await agent.leave()
    resumed = await plane.agent(instance_id="instance-2", start_step=10, state=state())
    sent = await received(resumed, 1)
    assert (sent.state, sent.applied.step) == (update_pb2.UPDATE_STATE_APPLIED, 21)
    number = await resumed.say(outcome=applied(1, 11, "instance-2"))
    await resumed.acknowledged(number)
    answer = await plane.control.ListUpdates(control_pb2.ListUpdatesRequest(parent="jobs/j"))
    assert [each.step for each in answer.updates[0].reapplied] == [11]
    assert [(s.instance_id, s.first_step, s.last_step) for s in answer.lineage] == [
        ("instance-1", 0, 10),
        ("instance-2", 11, 0),
    ]
    assert not answer.lineage[-1].HasField("last_step")
