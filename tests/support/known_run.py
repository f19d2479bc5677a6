"""A run whose course is known, on a real control plane: a change, then a spike of the loss."""

from __future__ import annotations

import math
from typing import Any

from midcourse.agent.v1 import session_pb2 as pb
from midcourse.control.v1 import parameter_pb2, update_pb2
from tests.support.plane import Callers, set_rate
from tests.support.scripted_agent import LEARNING_RATE, ScriptedAgent, hello

STEPS = 60
CHANGE_STEP = 30
SPIKE_STEP = 31
PEAK_STEP = 33
PEAK = 9.84
RECOVERED_STEP = 40
OLD_RATE, NEW_RATE = 0.001, 0.008
REASON = "faster, please"
BEGIN = 1_700_000_000_000_000

LOSS = [2.5 - 0.01 * step + 0.01 * math.sin(step) for step in range(1, STEPS + 1)]
for _step in range(SPIKE_STEP, RECOVERED_STEP):
    LOSS[_step - 1] = PEAK - 0.5 * abs(_step - PEAK_STEP)


def column(name: str, values: list[float], first_step: int = 1) -> pb.MetricColumn:
    """Samples of a metric, one for each step."""
    steps = range(first_step, first_step + len(values))
    times = [BEGIN + 1_000_000 * step for step in steps]
    return pb.MetricColumn(name=name, steps=steps, values=values, time_micros=times)


async def report(agent: ScriptedAgent, *columns: pb.MetricColumn, step: int = STEPS) -> None:
    """Has an agent report metrics, and waits until they are taken."""
    heartbeat = pb.Heartbeat(metrics=columns)
    heartbeat.progress.step = step
    heartbeat.progress.max_steps = 100
    await agent.acknowledged(await agent.say(heartbeat=heartbeat))
    assert not agent.of("item_error")


async def start_run(plane: Callers, job: str = "demo", **fields: Any) -> ScriptedAgent:
    """A trainer with a learning rate of `OLD_RATE` has shown itself."""
    rate = parameter_pb2.ParameterSpec()
    rate.CopyFrom(LEARNING_RATE)
    rate.current_value.number = OLD_RATE
    state = hello(job).state
    del state.parameters[:]
    state.parameters.append(rate)
    return await plane.agent(job, state=state, **fields)


async def known_run(plane: Callers, job: str = "demo", **fields: Any) -> ScriptedAgent:
    """The run that this module tells of; a second change is rejected by the trainer."""
    agent = await start_run(plane, job, **fields)
    await plane.update(job, spec=set_rate(NEW_RATE, reason=REASON))
    await agent.receive()
    applied = pb.UpdateOutcome(revision=1)
    applied.applied.step = CHANGE_STEP
    applied.applied.instance_id = agent.hello.instance_id
    moved = applied.applied.transitions.add(parameter="learning_rate")
    moved.old_value.number, moved.new_value.number = OLD_RATE, NEW_RATE
    await agent.acknowledged(await agent.say(outcome=applied))
    rates = [OLD_RATE] * (CHANGE_STEP - 1) + [NEW_RATE] * (STEPS - CHANGE_STEP + 1)
    await report(agent, column("loss", LOSS), column("learning_rate", rates))
    await plane.update(job, spec=set_rate(NEW_RATE / 2, reason="back again"))
    await agent.receive(2)
    rejected = pb.UpdateOutcome(revision=2)
    rejected.rejected.CopyFrom(
        update_pb2.Rejected(reason="TRAINER_BUSY", message="not at this boundary", step=STEPS)
    )
    await agent.acknowledged(await agent.say(outcome=rejected))
    return agent
