"""Lets a training loop that somebody wrote by hand be watched and steered.

::

    with Loop(optimizer, scheduler, job="my-run", total_steps=1000) as loop:
        loop.expose(Parameter("noise", lambda: data.noise, data.set_noise, minimum=0.0))
        for step in range(1, 1001):
            loss = model(next(batches))
            loss.backward()
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
            signal = loop.step(step, loss=loss)
            if signal.evaluate:
                loop.report(evaluate())
            if signal.save:
                loop.saved(save(step))
            if signal.stop:
                break

Needs torch and nothing else. See docs/loops.md.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable, Iterable, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any

from midcourse.control.v1 import update_pb2
from trainer_agent import identity
from trainer_agent.loop_session import LoopOptions, LoopSession
from trainer_agent.optimizer_watch import OptimizerWatch
from trainer_agent.parameters import Boundary, GuardRails, LiveParameter
from trainer_agent.signals import HANDLED, Signal, handled
from trainer_agent.steering.actions import ActionKind
from trainer_agent.steering.links import LinkFactory, default_link
from trainer_agent.telemetry import Telemetry
from trainer_agent.telemetry.measured import LateNumbers, host_numbers

if TYPE_CHECKING:
    from trainer_agent.steering.controller import ParameterController
    from trainer_agent.steering.protection import Protection
    from trainer_agent.steering.session import SteeringSession

logger = logging.getLogger(__name__)


class Loop:
    """A training loop, seen from its control plane.

    A context manager around the loop. What the optimizer has (learning rate, weight decay …) can be
    changed by itself, what is the script's own after :meth:`expose`. A change takes effect in
    :meth:`step`, between two optimizer steps. Without one, training is what it would be without
    this, to the bit. Nothing that fails in here or behind it (agent, network, control plane)
    reaches the loop: it is logged once, steering ends, training goes on.

    Of several ranks all make one, in a ``torch.distributed`` process group, and call the same
    methods at the same steps; the first one has the link to the agent.

    Args:
        optimizer: The optimizer, whose steps are watched; None: :meth:`optimizer_stepped` says when
            it has stepped, and what can be changed is what is exposed.
        scheduler: Its learning rate scheduler; None: none.
        job: Id of the job; None: the environment variable ``JOB_ID``, else that of the loaded
            state, else a new readable one, which is logged.
        control_plane: Address of the control plane, ``host:port``; None: the environment variable
            ``MIDCOURSE_CONTROL_PLANE``, else ``127.0.0.1:50051``.
        labels: Labels of the job, for finding it again.
        method: What the loop does, in a word; empty: unknown.
        total_steps: Optimizer steps planned; None: unknown.
        model: The model, for what lies in it; None: nothing there is changed.
        actions: What the loop does when its signal says so.
        samples_per_step: Samples of one step, on all ranks; None: unknown.
        guard_rails: Limits that nobody gets past, by live parameter.
        protection: What is done by itself about a loss that is not finite; None: nothing.
        replay: A file that tells how another run was steered, to be done again here, without a
            control plane; None: none.
        link_factory: Makes the link to the agent; for tests and other transports.

    Raises:
        OSError: The file to replay can not be read.
        ValueError: The job id is not well formed, the file is not as it has to be, or there is no
            such action.
    """

    def __init__(
        self,
        optimizer: Any = None,
        scheduler: Any = None,
        *,
        job: str | None = None,
        control_plane: str | None = None,
        labels: Mapping[str, str] | None = None,
        method: str = "",
        total_steps: int | None = None,
        model: Any = None,
        actions: Iterable[str] = HANDLED,
        samples_per_step: int | None = None,
        guard_rails: Mapping[str, GuardRails] | None = None,
        protection: Protection | None = None,
        replay: str | os.PathLike[str] | None = None,
        link_factory: LinkFactory = default_link,
    ) -> None:
        if replay is not None:
            from trainer_agent.replay import replay_link_factory

            link_factory = replay_link_factory(replay)
            protection = None  # what it did is in the file
        self._options = LoopOptions(
            optimizer=optimizer,
            scheduler=scheduler,
            model=model,
            job=identity.given_job_id(job),
            control_plane=identity.control_plane_address(control_plane),
            labels={str(key): str(value) for key, value in (labels or {}).items()},
            method=method,
            total_steps=total_steps,
            actions=handled(actions),
            samples_per_step=samples_per_step,
            guard_rails=dict(guard_rails or {}),
            protection=protection,
            link_factory=link_factory,
        )
        self._job_id = self._options.job
        self._own: list[LiveParameter] = []
        self._loaded: dict[str, Any] | None = None
        self._steps = 0
        self._said_stepped = False
        self._controller: ParameterController | None = None
        self._session: SteeringSession | None = None
        self._telemetry = Telemetry()
        self._late = LateNumbers()
        self._failures: set[str] = set()
        self._opened = self._ended = False
        self._watch = OptimizerWatch(optimizer, scheduler, self)

    @property
    def job_id(self) -> str | None:
        """Id of the job; None: not known before the first step."""
        return self._job_id

    def expose(self, *parameters: LiveParameter) -> None:
        """Offer live parameters of the script's own; before the first step.

        One with the name of what was found at the optimizer takes its place.

        Raises:
            ValueError: Training has begun, or a name is taken.
        """
        if self._opened:
            raise ValueError("training has begun; expose live parameters before the first step")
        for each in parameters:
            if any(each.spec().name == other.spec().name for other in self._own):
                raise ValueError(f"the live parameter {each.spec().name} is exposed twice")
            self._own.append(each)

    # ---- Each step ----

    def optimizer_stepped(self) -> None:
        """Say that the optimizer has stepped, before the scheduler does.

        Needed only where the optimizer was not given, or does not tell by itself.
        """
        self._guarded("optimizer_stepped", self._note_step)

    def optimizer_steps(self) -> None:
        """Say that the optimizer is about to step; likewise."""
        self._guarded("optimizer_steps", self._before_step)

    def step(
        self,
        step: int,
        *,
        loss: Any = None,
        metrics: Mapping[str, Any] | None = None,
        epoch: float | None = None,
    ) -> Signal:
        """Reach the boundary after an optimizer step; to be called after the scheduler's step.

        Returns at once, unless the run is paused: then it returns when it is resumed, or when there
        is something to do. A tensor is no reason to wait: one that lies on an accelerator is
        reported when it has come over, by itself.

        Args:
            step: Optimizer steps done: 1 after the first one.
            loss: The loss of the step: a number, or a tensor of one element; None: unknown.
            metrics: Further numbers, likewise.
            epoch: Passes over the data done, in fractions; None: unknown.

        Returns:
            What the loop has to do now.

        Raises:
            ValueError: The step does not come after the one before.
        """
        if step <= self._steps and not self._ended:
            raise ValueError(
                f"step is the number of optimizer steps done, 1 after the first: expected "
                f"{self._steps + 1} or more, got {step}; count with range(1, total_steps + 1)"
            )
        measured = {**({} if loss is None else {"loss": loss}), **(metrics or {})}
        self._guarded("step", self._reach_boundary, step, measured, epoch)
        return self._signal()

    def report(self, metrics: Mapping[str, Any]) -> None:
        """Report an evaluation: after ``signal.evaluate``, and whenever else there was one.

        Args:
            metrics: Its numbers, such as ``{"eval_loss": 0.4}``.
        """
        self._guarded("report", self._report, metrics)

    def saved(self, checkpoint: str | os.PathLike[str] | None = None) -> None:
        """Say that a checkpoint is saved: after ``signal.save``, and whenever else one was.

        Args:
            checkpoint: Where it lies; None: that is not known.
        """
        self._guarded("saved", self._saved, checkpoint)

    # ---- The script's checkpoints ----

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed loop needs, as JSON; to be saved with optimizer and scheduler.

        Empty where that is not to be had, as a parameter of the script's own has a value that is
        no JSON: the run is steered no longer then, and one that is resumed from here begins anew.
        """
        controller = self._controller
        if controller is None:
            return self._loaded or {}
        state: dict[str, Any] = {}

        def take() -> None:
            state.update(job=self._job_id, step=self._steps, controller=controller.state_dict())

        self._guarded("state_dict", take)
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a saved state; before the first step, in whatever order with the others.

        Raises:
            ValueError: Training has begun, or this is no such state.
        """
        if self._opened:
            raise ValueError("training has begun; load a state before the first step")
        if state and not ({"job", "step", "controller"} <= state.keys()):
            raise ValueError(
                f"this is not what Loop.state_dict returned: it has the keys {sorted(state)}"
            )
        self._loaded = dict(state) or None
        self._steps = int(state.get("step", 0))

    # ---- Beginning and end ----

    def __enter__(self) -> Loop:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        good = error is None or (isinstance(error, SystemExit) and not error.code)
        what = None if good else f"{type(error).__name__}: {error}"
        self._guarded("exit", self._end, what)

    # ---- Within ----

    def _guarded(self, component: str, do: Callable[..., None], *arguments: Any) -> None:
        """Keep whatever fails away from the training loop."""
        try:
            do(*arguments)
        except Exception as error:
            if component not in self._failures:
                self._failures.add(component)
                logger.exception(
                    "Midcourse failed in %s and steers this run no longer; training goes on",
                    component,
                )
            if self._session is not None:
                self._session.fault(component, error)

    def _signal(self) -> Signal:
        actions = None if self._session is None else self._session.actions
        return Signal(actions, saves=ActionKind.SAVE_CHECKPOINT in self._options.actions)

    def _before_step(self) -> None:
        """Begin with the first step; hold a run that is paused still."""
        if not self._opened:
            self._open()
        elif self._session is not None and self._session.actions.paused:
            self._session.hold(patiently=True, begun=True)
            self._telemetry.interrupted()

    def _note_step(self) -> None:
        if not self._opened:
            self._open()
        if self._session is not None:
            self._session.optimizer_stepped()
        self._said_stepped = True

    def _reach_boundary(self, step: int, measured: Mapping[str, Any], epoch: float | None) -> None:
        if not self._said_stepped and not self._watch:
            self._note_step()
        stepped, self._said_stepped = self._said_stepped, False
        self._steps = step
        session = self._session
        if session is None:
            return
        known, elsewhere = host_numbers(measured)
        if self._options.protection is not None and not math.isfinite(known.get("loss", 0.0)):
            session.loss_alarm(step, known["loss"])
        asked = False
        if stepped:  # else the optimizer's step was skipped, as for gradients that are not finite
            last = self._options.total_steps is not None and step >= self._options.total_steps
            asked = session.step_done(Boundary(step, self._options.total_steps, epoch), last=last)
        for earlier, numbers in self._late.take():
            session.log(earlier, numbers)
        self._late.add(step, elsewhere)
        if known:
            session.log(step, self._telemetry.logged(known))
        self._watch.boundary()
        if asked:
            self._hold(session)

    def _hold(self, session: SteeringSession) -> None:
        if session.actions.paused:
            session.hold()
            self._telemetry.interrupted()

    def _report(self, metrics: Mapping[str, Any]) -> None:
        session = self._session
        if session is None:
            return
        self._telemetry.interrupted()
        known, elsewhere = host_numbers(metrics)
        session.log(self._steps, known)
        self._late.add(self._steps, elsewhere)
        if ActionKind.EVALUATE in session.actions.wanted:
            session.action_done(ActionKind.EVALUATE, update_pb2.ActionResult(metrics=known))
        self._hold(session)

    def _saved(self, checkpoint: str | os.PathLike[str] | None) -> None:
        session = self._session
        if session is None:
            return
        self._telemetry.interrupted()
        path = "" if checkpoint is None else os.path.abspath(checkpoint)  # noqa: PTH100 - of any path
        for kind in (ActionKind.SAVE_CHECKPOINT, ActionKind.STOP):
            if kind in session.actions.wanted:
                session.action_done(kind, update_pb2.ActionResult(checkpoint=path))
        self._hold(session)

    def _open(self) -> None:
        """Find what can be changed, go on from the loaded state, begin to look for the agent."""
        self._opened = True
        opened = LoopSession.make(self._options, self._own, self._steps, self._loaded)
        self._job_id, self._telemetry = opened.job_id, opened.telemetry
        self._controller, self._session = opened.controller, opened.session
        opened.begin()

    def _end(self, error: str | None) -> None:
        self._opened = self._ended = True
        self._loaded = self.state_dict()
        session, self._session = self._session, None
        controller, self._controller = self._controller, None
        self._watch.remove()
        if controller is None or session is None:
            return
        try:
            for late, numbers in self._late.take():
                session.log(late, numbers)
            if error is not None:
                session.close(error)
                return
            if ActionKind.STOP in session.actions.wanted:
                session.action_done(ActionKind.STOP, update_pb2.ActionResult())
            session.finish(Boundary(self._steps, self._options.total_steps))
        finally:
            controller.detach()
