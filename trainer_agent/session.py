"""One training process's conversation with its agent.

Joins the controller, which applies updates, to the link, which carries messages. Knows no training
framework: the callback tells it what the loop does.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from midcourse.agent.v1 import session_pb2
from midcourse.control.v1 import job_pb2, update_pb2
from midcourse.link.v1 import link_pb2
from trainer_agent.link.steps import REPORT_INTERVAL_NANOS, StepBatch
from trainer_agent.links import CLOSE_TIMEOUT, LinkFactory, default_link
from trainer_agent.ranks import Alone, Ranks

if TYPE_CHECKING:
    from trainer_agent.actions import ActionKind, Actions
    from trainer_agent.controller import ParameterController
    from trainer_agent.parameters import Boundary
    from trainer_agent.ranks import Messages
    from trainer_agent.roll_back import HandOver

logger = logging.getLogger(__name__)


HOLD_SECONDS = 0.5
"""Longest wait, in seconds, between two looks at all that may end a pause."""


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
        ranks: The ranks of the run; None: this is the only one. The others than the first need a
            :class:`MuteLink`.
        monotonic_clock: Nanoseconds; the clock of deadlines.
    """

    def __init__(
        self,
        identity: Identity,
        controller: ParameterController,
        start: Boundary,
        link_factory: LinkFactory = default_link,
        step_metrics: Mapping[str, Callable[[], float | None]] | None = None,
        max_epochs: float | None = None,
        *,
        ranks: Ranks | None = None,
        monotonic_clock: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self._identity = identity
        self._controller = controller
        self._ranks: Ranks = ranks or Alone()
        self._monotonic_clock = monotonic_clock
        self._start_step = start.global_step
        self._boundary = start
        self._max_epochs = max_epochs
        self._finished = False
        self._told_paused = False
        self._step_nanos = 0
        self._reported_max_steps = start.max_steps
        self._batch = StepBatch()
        self._sent_nanos = 0
        self._step_metrics = tuple((step_metrics or {}).items())
        self._used: dict[str, float] = {}
        self._told: dict[str, float] = {}
        self._faults: set[str] = set()
        self._learned: list[link_pb2.RankMessage] = []
        self._closed = False
        self._link = link_factory(
            job_id=identity.job_id, hello=self.hello, control_plane=identity.control_plane
        )

    @property
    def identity(self) -> Identity:
        """Who this training process is."""
        return self._identity

    @property
    def actions(self) -> Actions:
        """What the loop has to do, besides training."""
        return self._controller.actions

    @property
    def roll_back(self) -> HandOver | None:
        """Where the run has to go back to, which ends this process; None: nowhere."""
        return self._controller.roll_back

    @property
    def is_first(self) -> bool:
        """Whether this is the rank that speaks for all."""
        return self._ranks.rank == 0

    def can_not_go_back(self, error: Exception) -> None:
        """Reject the update that asked for a roll back, as the next process could not be told."""
        what = f"the roll back could not be recorded: {type(error).__name__}: {error}"
        self._controller.can_not_go_back(what, self._boundary)
        self._send_news()

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

    # What the loop does.

    def optimizer_stepped(self) -> None:
        """Note what the optimizer step that has just run used, before any schedule goes on."""
        self._controller.optimizer_stepped()
        used = {}
        for name, value_of in self._step_metrics:
            value = value_of()
            if value is not None:
                used[name] = value
        self._used = used

    def step_done(self, boundary: Boundary, *, last: bool = False, pausing: bool = False) -> bool:
        """Report a step and let the controller work at the boundary after it.

        Args:
            boundary: Where the run stands now.
            last: No step follows.
            pausing: Something else comes first, such as an evaluation.

        Returns:
            Whether the loop has to do something besides training: see ``hold``, ``actions`` and
            ``roll_back``.
        """
        controller = self._controller
        self._boundary = boundary
        self._step_nanos = now = time.time_ns()
        messages = self._exchange(self._news())
        if messages:
            self._take(messages)
        self._at_boundary(last=last)
        step, max_steps, epoch = boundary
        self._told = self._used
        self._batch.add(step, now, epoch, self._told)
        if max_steps != self._reported_max_steps and max_steps is not None:
            self._reported_max_steps = max_steps
            self._batch.plan(max_steps)
        if now - self._sent_nanos >= REPORT_INTERVAL_NANOS or last or pausing:
            self._send_steps()
        asked = controller.asks
        if asked or self._told_paused or controller.has_news:
            self._send_news()
        return asked

    def hold(self, *, patiently: bool = False) -> None:
        """Wait at this boundary and do what arrives, as long as the run is paused.

        Returns also where the loop has something to do first: see ``actions.wanted`` and
        ``roll_back``. Never holds the process against an interrupt.

        Args:
            patiently: The loop can do nothing here: what is wanted has to wait for the next step.
        """
        controller, actions = self._controller, self._controller.actions
        while actions.paused and controller.roll_back is None:
            if actions.stopping or (actions.wanted and not patiently):
                break
            self._link.wait(HOLD_SECONDS)
            messages = self._hold(self._news())
            if messages:
                self._take(messages)
                self._at_boundary()
            self._send_news()

    def action_done(
        self, kind: ActionKind, result: update_pb2.ActionResult, *, telling: bool = True
    ) -> None:
        """Take what an action led to."""
        self._controller.action_done(kind, result)
        if telling:
            self._send_news()

    def loss_alarm(self, step: int, loss: float) -> None:
        """Have all ranks know of a loss that is not finite, at the next boundary.

        Args:
            step: The optimizer step that it was computed for.
            loss: The loss.
        """
        alarm = link_pb2.LossAlarm(step=step, loss=loss, rank=self._ranks.rank)
        self._learned.append(link_pb2.RankMessage(loss_alarm=alarm))

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
        if self._told_paused:  # a report of a step means that training goes on
            self._link.send(link_pb2.TrainerMessage(state=self._full_state()))

    def fault(self, component: str, error: BaseException) -> None:
        """Report that our own code failed, once for each part of it, and stop steering.

        Of several ranks all stop at the same boundary. Never raises.
        """
        if component in self._faults:
            return
        self._faults.add(component)
        what = f"{type(error).__name__}: {error}"
        try:
            if self._ranks.size == 1:
                self._switch_off(component, what)
            else:
                self._controller.veto(*_switched_off(component, what))
                fault = session_pb2.Fault(component=component, message=what)
                self._learned.append(link_pb2.RankMessage(fault=fault))
        except Exception:
            logger.exception("the failure of %s could not be reported", component)

    def finish(self, boundary: Boundary) -> None:
        """End in good order: settle what is open, say that training is done, close.

        Waits at most ``CLOSE_TIMEOUT`` seconds for the agent.
        """
        self._boundary = boundary
        self._finished = True
        try:
            self._take(self._ranks.close())
            self._take(_from_agent(self._link.poll()))
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
                if not self._finished:
                    self._ranks.close()
                self._send_steps()
            finally:
                self._link.close(error=error, timeout=CLOSE_TIMEOUT)

    # What the ranks tell one another.

    def _news(self) -> Messages:
        """Return what this rank has learned since it was last asked."""
        received = self._link.poll()
        if not received and not self._learned and not self._controller.has_deadlines:
            return ()
        learned, self._learned = self._learned, []
        learned.extend(_from_agent(received))
        if self._ranks.rank == 0:
            now = self._monotonic_clock()
            learned.extend(
                link_pb2.RankMessage(deadline_passed=link_pb2.DeadlinePassed(revision=revision))
                for revision in (*self._controller.overdue(now), *_overdue_already(received, now))
            )
        return learned

    def _exchange(self, messages: Messages) -> Messages:
        try:
            return self._ranks.exchange(messages)
        except Exception as error:
            self._leave_ranks(error)
            raise

    def _hold(self, messages: Messages) -> Messages:
        try:
            return self._ranks.hold(messages)
        except Exception as error:
            self._leave_ranks(error)
            raise

    def _at_boundary(self, *, last: bool = False) -> None:
        try:
            self._controller.at_boundary(self._boundary, last=last)
        except Exception as error:
            if self._ranks.size > 1:
                # The others may be waiting for what this rank was still to say here.
                self._leave_ranks(error)
            raise

    def _leave_ranks(self, error: Exception) -> None:
        """Stop steering on this rank, as what the others do is not known any more."""
        self._learned = list(self._ranks.close())
        self._ranks = Alone()
        self._switch_off("ranks", f"{type(error).__name__}: {error}")

    def _take(self, messages: Messages) -> None:
        for message in messages:
            match message.WhichOneof("message"):
                case "agent":
                    self._take_from_agent(message.agent)
                case "deadline_passed":
                    revision = message.deadline_passed.revision
                    self._controller.deadline_passed(revision, self._boundary)
                case "loss_alarm":
                    self._controller.alarm(message.loss_alarm)
                case "fault":
                    self._switch_off(message.fault.component, message.fault.message)
                case _:
                    pass

    def _take_from_agent(self, message: link_pb2.AgentMessage) -> None:
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

    def _switch_off(self, component: str, what: str) -> None:
        self._faults.add(component)
        self._controller.switch_off(*_switched_off(component, what))
        fault = session_pb2.Fault(component=component, message=what)
        self._link.send(link_pb2.TrainerMessage(fault=fault))
        self._link.send(link_pb2.TrainerMessage(state=self._full_state()))

    # What is told.

    def _send_news(self) -> None:
        """Send what updates have moved, how they ended, and whether the run is held."""
        controller, paused = self._controller, self.actions.paused
        if not controller.has_news and paused is self._told_paused:
            return
        self._send_steps()
        readings = controller.take_moved_readings()
        if readings:
            message = link_pb2.TrainerMessage()
            message.step.step = self._boundary.global_step
            message.step.time_nanos = self._step_nanos
            message.step.readings.extend(readings)
            self._link.send(message)
        for local in controller.take_local_updates():
            self._link.send(link_pb2.TrainerMessage(local_update=local))
        for outcome in controller.take_outcomes():
            self._link.send(link_pb2.TrainerMessage(outcome=outcome))
        if paused is not self._told_paused:
            self._told_paused = paused
            self._link.send(link_pb2.TrainerMessage(state=self._full_state()))

    def _send_steps(self) -> None:
        if len(self._batch):
            self._sent_nanos = self._step_nanos
            for message in self._batch.take():
                self._link.send(message)

    def _full_state(self) -> session_pb2.FullState:
        state = self._controller.full_state()
        state.progress.CopyFrom(self._progress())
        state.phase = session_pb2.TRAINER_PHASE_TRAINING
        if self._finished:
            state.phase = session_pb2.TRAINER_PHASE_FINISHED
        elif self.actions.paused:
            state.phase = session_pb2.TRAINER_PHASE_PAUSED
        return state

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


def _from_agent(messages: Iterable[link_pb2.AgentMessage]) -> list[link_pb2.RankMessage]:
    return [link_pb2.RankMessage(agent=message) for message in messages]


def _overdue_already(messages: Iterable[link_pb2.AgentMessage], now: int) -> list[int]:
    """Return the updates whose deadline passed on the way here, in a step that took its time."""
    return [
        each.delivery.update.revision
        for each in messages
        if each.delivery.HasField("deadline_monotonic_nanos")
        and each.delivery.deadline_monotonic_nanos <= now
        and each.delivery.update.state != update_pb2.UPDATE_STATE_APPLIED
    ]


def _switched_off(component: str, what: str) -> tuple[str, str]:
    """Return reason and message of what is rejected once our own code has failed."""
    return (
        "STEERING_SWITCHED_OFF",
        f"steering is switched off in this training process, as {component} failed: {what}",
    )
