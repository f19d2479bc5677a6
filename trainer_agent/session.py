"""One training process's conversation with its agent.

Joins the controller, which applies updates, to the link, which carries messages. Knows no training
framework: the callback tells it what the loop does.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from midcourse.agent.v1 import session_pb2
from midcourse.control.v1 import job_pb2
from midcourse.link.v1 import link_pb2
from trainer_agent.link.steps import REPORT_INTERVAL_NANOS, StepBatch

if TYPE_CHECKING:
    from trainer_agent.controller import ParameterController
    from trainer_agent.parameters import Boundary

logger = logging.getLogger(__name__)

CLOSE_TIMEOUT = 5.0
"""Longest wait, in seconds, for the agent to take the last messages at the end of training."""


class Link(Protocol):
    """What carries messages to the agent and back. Neither blocks nor raises."""

    def start(self) -> None:
        """Look for the agent, start one where there is none."""
        ...

    def send(self, message: link_pb2.TrainerMessage) -> None:
        """Send, or keep until the agent takes it."""
        ...

    def poll(self) -> Sequence[link_pb2.AgentMessage]:
        """Return what has arrived, oldest first."""
        ...

    def close(self, error: str | None = None, timeout: float = CLOSE_TIMEOUT) -> bool:
        """Say goodbye; wait at most so many seconds for the agent to take what is left."""
        ...


class LinkFactory(Protocol):
    """Makes a link."""

    def __call__(
        self,
        *,
        job_id: str,
        hello: Callable[[], link_pb2.TrainerHello],
        control_plane: str,
    ) -> Link:
        """Make a link whose every connection begins with what ``hello`` returns."""
        ...


def default_link(
    *, job_id: str, hello: Callable[[], link_pb2.TrainerHello], control_plane: str
) -> Link:
    """Make a link to an agent on this host, which is started if there is none."""
    from trainer_agent.link import TrainerLink

    return TrainerLink(job_id=job_id, hello=hello, control_plane=control_plane)


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


class SteeringSession:
    """One training process, from the beginning of its training to the end.

    Args:
        identity: Who it is.
        controller: Applies its updates.
        start: Where training begins.
        link_factory: Makes the link.
        step_metrics: What every step reports, by name: each is asked right after the optimizer
            step, and says None where the host does not know the value.
        max_epochs: Epochs planned; None: unknown.
    """

    def __init__(
        self,
        identity: Identity,
        controller: ParameterController,
        start: Boundary,
        link_factory: LinkFactory = default_link,
        step_metrics: Mapping[str, Callable[[], float | None]] | None = None,
        max_epochs: float | None = None,
    ) -> None:
        self._identity = identity
        self._controller = controller
        self._start_step = start.global_step
        self._boundary = start
        self._max_epochs = max_epochs
        self._phase: session_pb2.TrainerPhase.ValueType = session_pb2.TRAINER_PHASE_TRAINING
        self._step_nanos = 0
        self._reported_max_steps = start.max_steps
        self._batch = StepBatch()
        self._sent_nanos = 0
        self._step_metrics = tuple((step_metrics or {}).items())
        self._used: dict[str, float] = {}
        self._told: dict[str, float] = {}
        self._faults: set[str] = set()
        self._closed = False
        self._link = link_factory(
            job_id=identity.job_id, hello=self.hello, control_plane=identity.control_plane
        )

    @property
    def identity(self) -> Identity:
        """Who this training process is."""
        return self._identity

    def start(self) -> None:
        """Begin to look for the agent. Does not wait for it."""
        self._link.start()

    def hello(self) -> link_pb2.TrainerHello:
        """Say who this is and what it stands at; every new agent is told."""
        return link_pb2.TrainerHello(
            job_id=self._identity.job_id,
            labels=dict(self._identity.labels),
            method=self._identity.method,
            instance_id=self._identity.instance_id,
            start_step=self._start_step,
            state=self._full_state(),
            control_plane=self._identity.control_plane,
        )

    def optimizer_stepped(self) -> None:
        """Note what the optimizer step that has just run used, before any schedule goes on."""
        self._controller.optimizer_stepped()
        used = {}
        for name, value_of in self._step_metrics:
            value = value_of()
            if value is not None:
                used[name] = value
        self._used = used

    def step_done(self, boundary: Boundary, *, last: bool = False, pausing: bool = False) -> None:
        """Report a step and let the controller work at the boundary after it.

        Args:
            boundary: Where the run stands now.
            last: No step follows.
            pausing: Something else comes first, such as an evaluation.
        """
        controller = self._controller
        self._boundary = boundary
        self._step_nanos = now = time.time_ns()
        messages = self._link.poll()
        if messages:
            self._take(messages)
        controller.at_boundary(boundary, last=last)
        step, max_steps, epoch = boundary
        self._told = self._used
        self._batch.add(step, now, epoch, self._told)
        if max_steps != self._reported_max_steps and max_steps is not None:
            self._reported_max_steps = max_steps
            self._batch.plan(max_steps)
        if now - self._sent_nanos >= REPORT_INTERVAL_NANOS or last or pausing:
            self._send_steps()
        if controller.has_news:
            self._send_news()

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Report metrics, numbers that lie on the host already, with the step they belong to."""
        told = self._told if step == self._boundary.global_step else {}
        metrics = {name: each for name, each in metrics.items() if told.get(name) != each}
        if not metrics:
            return
        self._send_steps()
        message = link_pb2.TrainerMessage()
        report = message.step
        report.step = self._boundary.global_step
        report.time_nanos = time.time_ns()
        report.names.extend(metrics)
        report.values.extend(metrics.values())
        if step != report.step:
            report.metrics_step = step
        self._link.send(message)

    def fault(self, component: str, error: BaseException) -> None:
        """Report that our own code failed, once for each part of it, and stop steering.

        Never raises.
        """
        if component in self._faults:
            return
        self._faults.add(component)
        what = f"{type(error).__name__}: {error}"
        try:
            self._controller.switch_off(
                "STEERING_SWITCHED_OFF",
                f"steering is switched off in this training process, as {component} failed: {what}",
            )
            self._link.send(
                link_pb2.TrainerMessage(fault=session_pb2.Fault(component=component, message=what))
            )
            self._link.send(link_pb2.TrainerMessage(state=self._full_state()))
        except Exception:
            logger.exception("the failure of %s could not be reported", component)

    def finish(self, boundary: Boundary) -> None:
        """End in good order: settle what is open, say that training is done, close.

        Waits at most ``CLOSE_TIMEOUT`` seconds for the agent.
        """
        self._boundary = boundary
        self._phase = session_pb2.TRAINER_PHASE_FINISHED
        try:
            self._take(self._link.poll())
            self._controller.finish(boundary)
        finally:
            try:
                self._send_news()
            finally:
                finished = session_pb2.TrainingFinished(step=boundary.global_step)
                self._link.send(link_pb2.TrainerMessage(finished=finished))
                self.close()

    def close(self, error: str | None = None) -> None:
        """Close the link; does nothing the second time.

        Args:
            error: Type and message of the exception that ended training; None: none did.
        """
        if not self._closed:
            self._closed = True
            try:
                self._send_steps()
            finally:
                self._link.close(error=error, timeout=CLOSE_TIMEOUT)

    def _take(self, messages: Iterable[link_pb2.AgentMessage]) -> None:
        for message in messages:
            match message.WhichOneof("message"):
                case "delivery":
                    delivery = message.delivery
                    self._controller.deliver(
                        delivery.update,
                        delivery.deadline_monotonic_nanos
                        if delivery.HasField("deadline_monotonic_nanos")
                        else None,
                    )
                case "withdrawal":
                    self._controller.withdraw(message.withdrawal.revision)
                case "stored":
                    self._controller.acknowledge(message.stored.revisions)
                case _:
                    pass  # the link sees to welcome and detached, a newer agent may say more

    def _send_news(self) -> None:
        """Send what updates have moved, and how they ended."""
        self._send_steps()
        readings = self._controller.take_moved_readings()
        if readings:
            message = link_pb2.TrainerMessage()
            message.step.step = self._boundary.global_step
            message.step.time_nanos = self._step_nanos
            message.step.readings.extend(readings)
            self._link.send(message)
        for outcome in self._controller.take_outcomes():
            self._link.send(link_pb2.TrainerMessage(outcome=outcome))

    def _send_steps(self) -> None:
        if len(self._batch):
            self._sent_nanos = self._step_nanos
            for message in self._batch.take():
                self._link.send(message)

    def _full_state(self) -> session_pb2.FullState:
        return session_pb2.FullState(
            parameters=self._controller.specs(),
            in_force=self._controller.in_force(),
            held=self._controller.unsettled(),
            outcomes=self._controller.unacknowledged(),
            progress=self._progress(),
            phase=self._phase,
        )

    def _progress(self) -> job_pb2.Progress:
        boundary = self._boundary
        progress = job_pb2.Progress(
            step=boundary.global_step,
            max_steps=boundary.max_steps,
            epoch=boundary.epoch,
            max_epochs=self._max_epochs,
        )
        if self._step_nanos:
            progress.step_time.FromNanoseconds(self._step_nanos)
        return progress
