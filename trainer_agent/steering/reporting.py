"""What a training process tells its agent: who it is, its steps, what became of updates."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from grpc_runtime.failpoints import reached
from midcourse.agent.v1 import session_pb2
from midcourse.control.v1 import job_pb2
from midcourse.link.v1 import link_pb2
from trainer_agent.link.steps import REPORT_INTERVAL_NANOS, StepBatch

if TYPE_CHECKING:
    from trainer_agent.parameters import Boundary
    from trainer_agent.steering.controller import ParameterController
    from trainer_agent.steering.links import Link
    from trainer_agent.telemetry.pace import Measure


@dataclass(frozen=True, slots=True)
class Identity:
    """Who a training process is."""

    job_id: str
    instance_id: str
    """New for every start of training."""
    control_plane: str
    """Address of the control plane."""
    method: str = ""
    """Training method; empty: unknown."""
    labels: Mapping[str, str] = field(default_factory=dict)


class Reporter:
    """Puts what there is to tell into words, and sends it.

    Args:
        identity: Who tells.
        controller: Knows of the updates.
        start: Where training begins.
        step_metrics: What every step reports, by name: each is asked right after the optimizer
            step, and says None where the host does not know the value.
        measures: Each adds what it knows of a step, likewise.
        max_epochs: Epochs planned; None: unknown.

    Attributes:
        boundary: Where the run stands.
        step_nanos: When the step before it ended, in nanoseconds since 1970 UTC; 0: none has.
        finished: Training is done.
        link: Carries it. To be set before anything is sent.
    """

    link: Link

    def __init__(
        self,
        identity: Identity,
        controller: ParameterController,
        start: Boundary,
        step_metrics: Mapping[str, Callable[[], float | None]],
        measures: Sequence[Measure],
        max_epochs: float | None,
    ) -> None:
        self.identity = identity
        self.boundary = start
        self.finished = False
        self._controller = controller
        self._actions = controller.actions
        self._start_step = start.global_step
        self._max_epochs = max_epochs
        self._told_paused = False
        self.step_nanos = 0
        self._reported_max_steps = start.max_steps
        self._batch = StepBatch()
        self._sent_nanos = 0
        self._step_metrics = tuple(step_metrics.items())
        self._measures = tuple(measures)
        self._used: dict[str, float] = {}
        self._told: dict[str, float] = {}

    def hello(self) -> link_pb2.TrainerHello:
        """Say who this is and what it stands at; every new agent is told."""
        return link_pb2.TrainerHello(
            job_id=self.identity.job_id,
            labels=dict(self.identity.labels),
            method=self.identity.method,
            instance_id=self.identity.instance_id,
            start_step=self._start_step,
            state=self.full_state(),
            control_plane=self.identity.control_plane,
        )

    # At every step.

    def optimizer_stepped(self) -> None:
        """Note what the step that has just run used."""
        used = {}
        for name, value_of in self._step_metrics:
            value = value_of()
            if value is not None:
                used[name] = value
        for measure in self._measures:
            measure(used)
        self._used = used

    def step_done(self, *, at_once: bool) -> None:
        """Report the step that has ended, with others or at once."""
        step, max_steps, epoch = self.boundary
        now = self.step_nanos
        self._told = used = self._used
        self._batch.steps.append((step, now, epoch, used))
        if max_steps != self._reported_max_steps and max_steps is not None:
            self._reported_max_steps = max_steps
            self._batch.plan(max_steps)
        # Negative where the clock was set back.
        if at_once or not 0 <= now - self._sent_nanos < REPORT_INTERVAL_NANOS:
            self.send_steps()

    # Now and then.

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Report metrics, numbers that lie on the host already, with the step they belong to."""
        told = self._told if step == self.boundary.global_step else {}
        metrics = {name: each for name, each in metrics.items() if told.get(name) != each}
        if not metrics:
            return
        self.send_steps()
        message = link_pb2.TrainerMessage()
        report = message.step
        report.step = self.boundary.global_step
        report.time_nanos = time.time_ns()
        report.names.extend(metrics)
        report.values.extend(metrics.values())
        if step != report.step:
            report.metrics_step = step
        self.link.send(message)
        if self._told_paused:  # a report of a step means that training goes on
            self.link.send(link_pb2.TrainerMessage(state=self.full_state()))

    def send_news(self) -> None:
        """Send what updates have moved, how they ended, and whether the run is held."""
        controller, paused = self._controller, self._actions.paused
        if not controller.has_news and paused is self._told_paused:
            return
        self.send_steps()
        readings = controller.take_moved_readings()
        if readings:
            message = link_pb2.TrainerMessage()
            message.step.step = self.boundary.global_step
            message.step.time_nanos = self.step_nanos
            message.step.readings.extend(readings)
            self.link.send(message)
        for fault in controller.take_faults():
            self.link.send(link_pb2.TrainerMessage(fault=fault))
        for local in controller.take_local_updates():
            self.link.send(link_pb2.TrainerMessage(local_update=local))
        for outcome in controller.take_outcomes():
            reached("trainer.tell")
            self.link.send(link_pb2.TrainerMessage(outcome=outcome))
            reached("trainer.told")
        if paused is not self._told_paused:
            self._told_paused = paused
            self.link.send(link_pb2.TrainerMessage(state=self.full_state()))

    def send_steps(self) -> None:
        """Send the steps that wait to be reported with others."""
        if self._batch.steps:
            self._sent_nanos = self.step_nanos
            for message in self._batch.take():
                self.link.send(message)

    def full_state(self) -> session_pb2.FullState:
        """Return where the run stands and all that is known of its updates."""
        state = self._controller.full_state()
        state.progress.CopyFrom(self._progress())
        state.phase = session_pb2.TRAINER_PHASE_TRAINING
        if self.finished:
            state.phase = session_pb2.TRAINER_PHASE_FINISHED
        elif self._actions.paused:
            state.phase = session_pb2.TRAINER_PHASE_PAUSED
        return state

    def _progress(self) -> job_pb2.Progress:
        boundary = self.boundary
        progress = job_pb2.Progress(
            step=boundary.global_step,
            max_steps=boundary.max_steps,
            epoch=boundary.epoch,
            max_epochs=self._max_epochs,
        )
        if self.step_nanos:
            progress.step_time.FromNanoseconds(self.step_nanos)
        return progress
