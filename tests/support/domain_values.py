"""Jobs, updates and declarations of the domain, for tests of the control plane's inside."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from control_plane.domain.errors import Refusal
from control_plane.domain.job import Job
from control_plane.domain.parameter import (
    Bounds,
    Change,
    Kind,
    Operation,
    ParameterSpec,
    SetChange,
)
from control_plane.domain.session import FullState, Hello, Phase, TrainerOutcome
from control_plane.domain.update import Applied, Transition, Update, UpdateSpec

NOW = datetime(2026, 1, 2, 3, 4, 5, 678_901, tzinfo=UTC)
SECOND = timedelta(seconds=1)

LEARNING_RATE = ParameterSpec(
    name="learning_rate",
    unit="1/step",
    bounds=Bounds(minimum=0.0, maximum=1.0),
    operations=tuple(Operation),
    groups=("0", "1"),
    current_value=2e-5,
)
BATCH_SIZE = ParameterSpec(
    name="gradient_accumulation_steps",
    kind=Kind.INTEGER,
    bounds=Bounds(minimum=1, maximum=1024),
    current_value=4,
)
SPECS = (LEARNING_RATE, BATCH_SIZE)


def refused(call: Callable[[], object]) -> Refusal | None:
    """What a call is refused with; None: it is not."""
    try:
        call()
    except Refusal as refusal:
        return refusal
    return None


def job(**fields: Any) -> Job:
    """A job that has declared a learning rate and an accumulation."""
    return replace(Job("j", "uid", NOW, NOW, parameters=SPECS), **fields)


def set_rate(value: float = 1e-5, **fields: Any) -> UpdateSpec:
    """An update of the learning rate."""
    return UpdateSpec(changes=(SetChange("learning_rate", value),), **fields)


def update(revision: int = 1, *changes: Change, **fields: Any) -> Update:
    """An accepted update."""
    spec = UpdateSpec(changes=changes) if changes else set_rate()
    values: dict[str, Any] = {"author": "ops", "request_id": f"r{revision}", "create_time": NOW}
    return Update("j", revision, spec, **{**values, **fields})


def applied(
    step: int = 7, value: float = 1e-5, *, instance_id: str = "instance-1", old: float = 2e-5
) -> Applied:
    """The learning rate is in force from a step on."""
    transition = Transition("learning_rate", "", old, value)
    return Applied(step, (transition,), NOW, instance_id)


def hello(
    job_id: str = "j",
    instance_id: str = "instance-1",
    *,
    start_step: int = 0,
    protocol_version: int = 1,
    labels: dict[str, str] | None = None,
    **state: Any,
) -> Hello:
    """The first message of an agent; `state` are fields of its full state."""
    defaults: dict[str, Any] = {"parameters": SPECS, "phase": Phase.TRAINING}
    return Hello(
        protocol_version=protocol_version,
        job_id=job_id,
        instance_id=instance_id,
        agent_id=f"agent-of-{instance_id}",
        labels=labels or {},
        method="sft",
        agent_version="0.1.0",
        host="gpu-01",
        trainer_pid=4242,
        start_step=start_step,
        state=FullState(**{**defaults, **state}),
    )


def settled(revision: int, result: Any = None) -> TrainerOutcome:
    """How an update ended in the trainer; applied, unless said otherwise."""
    return TrainerOutcome(revision, applied() if result is None else result)
