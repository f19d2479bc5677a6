"""The callback that lets a Hugging Face or TRL training run be watched and steered."""

from __future__ import annotations

import functools
import logging
import numbers
import os
import sys
import weakref
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar, cast

from transformers.trainer_callback import ExportableState, TrainerCallback

from trainer_agent import identity
from trainer_agent.controller import ParameterController
from trainer_agent.discovery import find
from trainer_agent.one_instance import make_only_instance
from trainer_agent.parameters import Boundary
from trainer_agent.run import Run
from trainer_agent.session import Identity, LinkFactory, SteeringSession, default_link

if TYPE_CHECKING:
    from transformers.trainer_callback import TrainerControl, TrainerState
    from transformers.training_args import TrainingArguments

    from trainer_agent.discovery import Found

logger = logging.getLogger(__name__)

_Hook = TypeVar("_Hook", bound=Callable[..., None])

_STATE_KEY = "steering"
_NOT_METRICS = frozenset({"epoch", "step"})


def _harmless(hook: _Hook) -> _Hook:
    """Keep whatever fails in a hook away from the training loop."""
    name = hook.__name__

    @functools.wraps(hook)
    def guarded(self: RuntimeParameterUpdateCallback, *args: Any, **kwargs: Any) -> None:
        try:
            hook(self, *args, **kwargs)
        except Exception as error:  # noqa: BLE001 - nothing of ours may stop a training run
            self._failed(name, error)

    return cast(_Hook, guarded)


class RuntimeParameterUpdateCallback(TrainerCallback, ExportableState):
    """Lets a run be watched and its parameters be changed while it trains.

    With :func:`trainer_agent.attach` it knows the trainer as well, and so reaches what lies there;
    given to a trainer as one of its ``callbacks`` it works with what a callback is shown::

        Trainer(..., callbacks=[RuntimeParameterUpdateCallback(job="my-run")])

    A change takes effect between two optimizer steps. Without one, training is what it would be
    without the callback, to the bit. Nothing that fails in here or behind it (agent, network,
    control plane) reaches the training loop: it is logged once, steering ends, training goes on.

    What is in force rides in the checkpoint (``trainer_state.json``), and a run that is resumed
    goes on with it.

    Args:
        job: Id of the job; None: the environment variable ``JOB_ID``, else that of the checkpoint
            which the run goes on from, else a new readable one, which is logged.
        control_plane: Address of the control plane, ``host:port``; None: the environment variable
            ``MIDCOURSE_CONTROL_PLANE``, else ``127.0.0.1:50051``.
        labels: Labels of the job, for finding it again.
        link_factory: Makes the link to the agent; for tests and other transports.

    Raises:
        ValueError: The job id is not well formed.
    """

    def __init__(
        self,
        job: str | None = None,
        control_plane: str | None = None,
        labels: Mapping[str, str] | None = None,
        *,
        link_factory: LinkFactory = default_link,
    ) -> None:
        self._given_job = identity.given_job_id(job)
        self._control_plane = identity.control_plane_address(control_plane)
        self._labels = {str(key): str(value) for key, value in (labels or {}).items()}
        self._link_factory = link_factory
        self._trainer: weakref.ref[Any] | None = None
        self._controller: ParameterController | None = None
        self._session: SteeringSession | None = None
        self._goodbye: weakref.finalize[Any, Any] | None = None
        self._job_id: str | None = self._given_job
        # What the last run ended with, for a checkpoint that is saved after it.
        self._last_state: dict[str, Any] | None = None
        self._reported: set[str] = set()
        # Transformers, told to restore callbacks from a checkpoint, puts a new object of the same
        # class in the place of each. The script's own settings would be lost with this one.
        make_only_instance(self)

    @property
    def job_id(self) -> str | None:
        """Id of the job; None: not known before training begins."""
        return self._job_id

    def bind(self, trainer: Any) -> None:
        """Tell the callback which trainer it belongs to, as :func:`trainer_agent.attach` does."""
        self._trainer = weakref.ref(trainer)

    def settings(self) -> tuple[str | None, str, dict[str, str]]:
        """Return job id (None: not given), control plane and labels, as they were asked for."""
        return self._given_job, self._control_plane, dict(self._labels)

    # ---- Hooks ----

    @_harmless
    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Find what can be changed, go on from the checkpoint, begin to look for the agent."""
        self._end_session("training began anew")
        # A checkpoint from before the callback has no entry for it, and saving the next one fails
        # in transformers where there is none.
        stored = cast("dict[str, Any]", state.stateful_callbacks)
        saved = stored.setdefault(type(self).__name__, self.state())
        self._last_state = None
        self._reported.clear()
        resumed = _saved_state(saved) if state.global_step > 0 else None
        trainer = None if self._trainer is None else self._trainer()
        found = find(
            Run(
                optimizer=kwargs.get("optimizer"),
                lr_scheduler=kwargs.get("lr_scheduler"),
                model=kwargs.get("model"),
                trainer=trainer,
                args=args,
                state=state,
                method=identity.training_method(trainer, args),
            )
        )
        instance_id = identity.new_instance_id()
        self._controller = controller = ParameterController(found.parameters, instance_id)
        checkpoint_job = None if resumed is None else resumed["job"]
        if state.is_world_process_zero:
            self._open_session(args, state, controller, found, instance_id, checkpoint_job)
        try:
            if resumed is not None:
                # On every rank, as each has its own optimizer.
                same_job = self._session is None or checkpoint_job == self._job_id
                controller.load_state_dict(resumed["controller"], same_job=same_job)
        finally:
            if self._session is not None:
                self._session.start()

    # The two that run at every step keep failures away themselves, as wrapping them costs as much
    # as they do.

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Note what the step used."""
        try:
            if self._session is not None:
                self._session.optimizer_stepped()
            elif self._controller is not None:
                self._controller.optimizer_stepped()
        except Exception as error:  # noqa: BLE001 - nothing of ours may stop a training run
            self._failed("on_optimizer_step", error)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Work at the boundary between two steps."""
        try:
            last = control.should_training_stop or 0 < state.max_steps <= state.global_step
            if self._session is not None:
                pausing = control.should_evaluate or control.should_save
                self._session.step_done(_boundary(state), last=last, pausing=pausing)
            elif self._controller is not None:  # on other ranks nothing is new, but time goes on
                self._controller.at_boundary(_boundary(state), last=last)
        except Exception as error:  # noqa: BLE001 - nothing of ours may stop a training run
            self._failed("on_step_end", error)

    @_harmless
    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Report the metrics that the trainer has on the host already."""
        if self._session is not None and logs:
            self._session.log(state.global_step, _metrics(logs))

    @_harmless
    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Settle what is open and say that training is done."""
        try:
            if self._session is not None:
                self._session.finish(_boundary(state))
        finally:
            self._last_state = self.state()[_STATE_KEY]
            self._end_session(None)

    # ---- ExportableState ----

    def state(self) -> dict[str, Any]:
        """Return what rides in the checkpoint. Never raises.

        ``args`` and ``attributes`` are for transformers to build a new object with; there is none
        to build.
        """
        state = self._last_state
        if self._controller is not None:
            try:
                state = self._state_of(self._controller)
            except Exception as error:  # noqa: BLE001 - it must not keep a checkpoint from being saved
                self._failed("state", error)
        return {"args": {}, "attributes": {}, _STATE_KEY: state}

    # ---- Within ----

    def _open_session(
        self,
        args: TrainingArguments,
        state: TrainerState,
        controller: ParameterController,
        found: Found,
        instance_id: str,
        checkpoint_job: str | None,
    ) -> None:
        method = identity.training_method(None if self._trainer is None else self._trainer(), args)
        job_id = self._given_job or checkpoint_job
        if job_id is None:
            job_id = identity.generated_job_id(method)
            logger.info("this run is job %s; watch it with: midcourse watch %s", job_id, job_id)
        self._job_id = job_id
        if args.world_size > 1:
            message = (
                f"this run has {args.world_size} ranks, and only a run of one rank can be steered "
                "yet; this one can be watched"
            )
            logger.warning("job %s: %s", job_id, message)
            controller.switch_off("SEVERAL_RANKS", message)
        who = Identity(job_id, instance_id, self._control_plane, method, self._labels)
        self._session = session = SteeringSession(
            who,
            controller,
            _boundary(state),
            link_factory=self._link_factory,
            step_metrics=found.metrics,
            max_epochs=float(args.num_train_epochs) if args.max_steps <= 0 else None,
        )
        self._goodbye = _goodbye_at_the_latest(self, session)

    def _state_of(self, controller: ParameterController) -> dict[str, Any]:
        return {"job": self._job_id, "controller": controller.state_dict()}

    def _end_session(self, error: str | None) -> None:
        session, self._session = self._session, None
        controller, self._controller = self._controller, None
        if self._goodbye is not None:
            self._goodbye.detach()
        if session is not None:
            session.close(error)
        if controller is not None:
            controller.detach()

    def _failed(self, component: str, error: Exception) -> None:
        """Log a failure of our own once, report it and switch steering off."""
        if component not in self._reported:
            self._reported.add(component)
            logger.error(
                "Midcourse failed in %s and steers this run no longer; training goes on",
                component,
                exc_info=error,
            )
        if self._session is not None:
            self._session.fault(component, error)


def _saved_state(saved: Any) -> dict[str, Any] | None:
    """Return what a checkpoint holds for us; None: nothing."""
    if isinstance(saved, list):  # several callbacks of the class: the first one stands for the run
        saved = saved[0] if saved else None
    state = saved.get(_STATE_KEY) if isinstance(saved, dict) else None
    return state if isinstance(state, dict) else None


def _boundary(state: TrainerState) -> Boundary:
    return Boundary(
        global_step=state.global_step,
        max_steps=state.max_steps if state.max_steps > 0 else None,
        epoch=state.epoch,
    )


def _metrics(logs: Mapping[str, Any]) -> dict[str, float]:
    """Return the logged numbers. A tensor may lie on an accelerator, and is left where it is."""
    return {
        name: float(value)
        for name, value in logs.items()
        if isinstance(value, int | float | numbers.Real)
        and value is not True
        and value is not False
        and name not in _NOT_METRICS
    }


def _goodbye_at_the_latest(
    callback: RuntimeParameterUpdateCallback, session: SteeringSession
) -> weakref.finalize[Any, Any]:
    """Say goodbye when the process ends, or the callback is given up, before training has ended."""
    process = os.getpid()

    def close() -> None:
        if os.getpid() == process:  # a forked child has not ended anything
            session.close(_uncaught_exception() or "it ended before training had")

    return weakref.finalize(callback, close)


def _uncaught_exception() -> str | None:
    error = getattr(sys, "last_value", None)
    return None if error is None else f"{type(error).__name__}: {error}"
