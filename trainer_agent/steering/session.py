"""One training process's conversation with its agent.

Joins the controller, which applies updates, to the link, which carries messages. Knows no training
framework: the callback tells it what the loop does.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from midcourse.agent.v1 import session_pb2
from midcourse.link.v1 import link_pb2
from trainer_agent.ranks import Alone, Apart, Ranks
from trainer_agent.steering.links import CLOSE_TIMEOUT, LinkFactory, default_link
from trainer_agent.steering.pauses import Pauses
from trainer_agent.steering.rank_news import RankNews, from_agent
from trainer_agent.steering.reporting import Identity, Reporter

if TYPE_CHECKING:
    from midcourse.control.v1 import update_pb2
    from trainer_agent.parameters import Boundary
    from trainer_agent.ranks import Messages
    from trainer_agent.steering.actions import ActionKind, Actions
    from trainer_agent.steering.controller import ParameterController
    from trainer_agent.steering.roll_back import HandOver
    from trainer_agent.telemetry.pace import Measure

__all__ = ["HOLD_SECONDS", "Identity", "SteeringSession"]

logger = logging.getLogger(__name__)


HOLD_SECONDS = 0.5
"""Longest wait, in seconds, between two looks at all that may end a pause."""


class SteeringSession:
    """One training process, from the beginning of its training to the end.

    Args:
        identity: Who it is.
        controller: Applies its updates.
        start: Where training begins.
        link_factory: Makes the link.
        step_metrics: What every step reports, by name: each is asked right after the optimizer
            step, and says None where the host does not know the value.
        measures: Each adds what it knows of a step, likewise.
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
        measures: Sequence[Measure] = (),
        ranks: Ranks | None = None,
        monotonic_clock: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self._controller = controller
        self._ranks: Ranks = ranks or Alone()
        self._alone = self._ranks.size == 1
        self._reporter = Reporter(
            identity, controller, start, step_metrics or {}, measures, max_epochs
        )
        self._pauses = Pauses(identity.job_id, monotonic_clock)
        self._faults: set[str] = set()
        self._news = RankNews(controller, monotonic_clock)
        # The first step after which there may be something to do that this process knows of
        # already; 0: after the next one. Most steps end with a look at this and at the link.
        self._idle_until = 0
        self._ticking = controller.ticking
        self._closed = False
        self._link = self._reporter.link = link_factory(
            job_id=identity.job_id,
            hello=self._reporter.hello,
            control_plane=identity.control_plane,
        )

    @property
    def identity(self) -> Identity:
        """Who this training process is."""
        return self._reporter.identity

    @property
    def actions(self) -> Actions:
        """What the loop has to do, besides training."""
        return self._controller.actions

    @property
    def roll_back(self) -> HandOver | None:
        """What is to be left to the next process, as this one has to end and go back; None: not."""
        return self._controller.going_back.hand_over(self._reporter.boundary)

    @property
    def is_first(self) -> bool:
        """Whether this is the rank that speaks for all."""
        return self._ranks.rank == 0

    def request_stop(self) -> None:
        """Have the run end at the next boundary, with a checkpoint; a pause ends with it.

        May be called from a signal handler, on whichever rank. Where several ranks do not agree
        nothing comes of it, as one must not stop alone.
        """
        self._news.stop_wanted = True
        self._idle_until = 0

    def leaves(self, error: Exception | None) -> bool:
        """End as the run goes back to a checkpoint, if the next process could be told.

        Args:
            error: Why this rank could not tell it; None: it could, or another rank does it.

        Returns:
            Whether all could. If not, the update that asked for it is rejected.
        """
        going_back = self._controller.going_back
        leaves = going_back.may_leave(error, self._reporter.boundary)
        if leaves:
            going_back.leave(self._reporter.boundary)
        self._reporter.send_news()
        if leaves:
            self.close()
        return leaves

    def start(self) -> None:
        """Begin to look for the agent. Does not wait for it."""
        self._link.start()

    # What the loop does.

    def optimizer_stepped(self) -> None:
        """Note what the optimizer step that has just run used, before any schedule goes on."""
        if not self._idle_until:  # else there is nothing that a step has to confirm
            self._controller.optimizer_stepped()
        self._reporter.optimizer_stepped()

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
        reporter = self._reporter
        reporter.boundary = boundary
        reporter.step_nanos = time.time_ns()
        received = self._link.poll()
        if boundary.global_step < self._idle_until and not received:
            if self._ticking:
                self._controller.tick(boundary)
            reporter.step_done(at_once=last or pausing)
            return False
        controller = self._controller
        messages: Messages = ()
        if received or self._news:
            messages = self._news.take(received, self._ranks)
        if not self._alone:
            messages = self._exchange(messages)
        if messages:
            self._take(messages)
        try:
            controller.at_boundary(boundary, last=last)
        except Exception as error:
            self.leave_ranks(error)
            raise
        self._pauses.end_for_want_of_others(controller.actions)
        reporter.step_done(at_once=last or pausing)
        asked = controller.asks
        reporter.send_news()
        self._idle_until = controller.idle_until if self._alone and not asked else 0
        if self._news:  # looked at last, as a signal may ask for a stop at any time
            self._idle_until = 0
        return asked

    def hold(self, *, patiently: bool = False, begun: bool = False) -> None:
        """Wait at this boundary and do what arrives, as long as the run is paused.

        Says so in the training log once a minute, and goes on where nobody could end the pause.
        Returns also where the loop has something to do first: see ``actions.wanted`` and
        ``roll_back``. Never holds the process against an interrupt.

        Args:
            patiently: The loop can do nothing here: what is wanted has to wait for the next step.
            begun: The next step has begun already, and will be finished.
        """
        controller, actions = self._controller, self._controller.actions
        while actions.paused and not controller.going_back.wanted:
            if actions.stopping or (actions.wanted and not patiently):
                break
            if self.is_first:
                self._pauses.remind(self._reporter.boundary.global_step)
            self._link.wait(HOLD_SECONDS)
            self.look(begun=begun)
        if not actions.paused:
            self._pauses.over()

    def look(self, *, begun: bool = False) -> None:
        """Do what has arrived, at the boundary where the run stands; waits for nothing.

        What ``hold`` does again and again, for a loop that has its own way of waiting.

        Args:
            begun: The next step has begun already, and will be finished.
        """
        self._idle_until = 0
        messages = self._hold(self._news.take(self._link.poll(), self._ranks))
        if messages:
            self._take(messages)
            try:
                self._controller.at_boundary(self._reporter.boundary, begun=begun)
            except Exception as error:
                self.leave_ranks(error)
                raise
            self._pauses.end_for_want_of_others(self._controller.actions)
        self._reporter.send_news()

    def action_done(
        self, kind: ActionKind, result: update_pb2.ActionResult, *, telling: bool = True
    ) -> None:
        """Take what an action led to."""
        self._idle_until = 0
        self._controller.action_done(kind, result)
        if telling:
            self._reporter.send_news()

    def loss_alarm(self, step: int, loss: float) -> None:
        """Have all ranks know of a loss that is not finite, at the next boundary.

        Args:
            step: The optimizer step that it was computed for.
            loss: The loss.
        """
        alarm = link_pb2.LossAlarm(step=step, loss=loss, rank=self._ranks.rank)
        self._news.learned.append(link_pb2.RankMessage(loss_alarm=alarm))
        self._idle_until = 0

    def fault(self, component: str, error: BaseException) -> None:
        """Report that our own code failed, once for each part of it, and stop steering.

        Of several ranks all stop at the same boundary. Never raises.
        """
        if component in self._faults:
            return
        self._faults.add(component)
        self._idle_until = 0
        what = f"{type(error).__name__}: {error}"
        try:
            if self._alone:
                self._switch_off(component, what)
            else:
                self._controller.veto(*_switched_off(component, what))
                fault = session_pb2.Fault(component=component, message=what)
                self._news.learned.append(link_pb2.RankMessage(fault=fault))
        except Exception:
            logger.exception("the failure of %s could not be reported", component)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Report metrics, numbers that lie on the host already, with the step they belong to."""
        self._reporter.log(step, metrics)

    def finish(self, boundary: Boundary) -> None:
        """End in good order: settle what is open, say that training is done, close.

        Waits at most ``CLOSE_TIMEOUT`` seconds for the agent.
        """
        reporter = self._reporter
        reporter.boundary = boundary
        reporter.finished = True
        try:
            self._take(self._ranks.close())
            self._take(from_agent(self._link.poll()))
            self._controller.finish(boundary)
        finally:
            try:
                reporter.send_news()
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
                if not self._reporter.finished:
                    self._ranks.close()
                self._reporter.send_steps()
            finally:
                self._link.close(error=error, timeout=CLOSE_TIMEOUT)

    # What the ranks tell one another.

    def _exchange(self, messages: Messages) -> Messages:
        try:
            return self._ranks.exchange(messages)
        except Exception as error:
            self.leave_ranks(error)
            raise

    def _hold(self, messages: Messages) -> Messages:
        try:
            return self._ranks.hold(messages)
        except Exception as error:
            self.leave_ranks(error)
            raise

    def leave_ranks(self, error: Exception, component: str = "ranks") -> None:
        """Stop steering on this rank, as what the others do is not known any more.

        They may be waiting for what this rank was still to say. Does nothing to one that has no
        others.
        """
        if not self._alone:
            self._news.learned = list(self._ranks.close())
            self._ranks = Apart(self._ranks.rank)
            self._alone = True
            self._switch_off(component, f"{type(error).__name__}: {error}")

    def _take(self, messages: Messages) -> None:
        for message in messages:
            match message.WhichOneof("message"):
                case "agent":
                    self._take_from_agent(message.agent)
                case "deadline_passed":
                    revision = message.deadline_passed.revision
                    self._controller.deadline_passed(revision, self._reporter.boundary)
                case "loss_alarm":
                    self._controller.alarm(message.loss_alarm)
                case "stop":
                    self._controller.stop()
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
            case "detached":
                self._pauses.detached(message.detached)
            case _:
                pass  # the link sees to welcome, a newer agent may say more

    def _switch_off(self, component: str, what: str) -> None:
        self._faults.add(component)
        self._controller.switch_off(*_switched_off(component, what))
        fault = session_pb2.Fault(component=component, message=what)
        self._link.send(link_pb2.TrainerMessage(fault=fault))
        self._link.send(link_pb2.TrainerMessage(state=self._reporter.full_state()))


def _switched_off(component: str, what: str) -> tuple[str, str]:
    """Return reason and message of what is rejected once our own code has failed."""
    return (
        "STEERING_SWITCHED_OFF",
        f"steering is switched off in this training process, as {component} failed: {what}",
    )
