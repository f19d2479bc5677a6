"""The callback that lets a Hugging Face or TRL training run be watched and steered."""

from __future__ import annotations

import logging
import weakref
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, cast

from transformers.trainer_callback import ExportableState, TrainerCallback

from midcourse.control.v1 import update_pb2
from trainer_agent import identity
from trainer_agent.discovery import find
from trainer_agent.goodbye import goodbye_at_the_latest
from trainer_agent.harmless import harmless
from trainer_agent.one_instance import make_only_instance
from trainer_agent.parameters import GuardRails, LiveParameter, data
from trainer_agent.ranks import Ranks, met, shared_instance_id
from trainer_agent.run import Run
from trainer_agent.steering import guard_rails as rails
from trainer_agent.steering import roll_back
from trainer_agent.steering.actions import ActionKind, Actions
from trainer_agent.steering.controller import ParameterController
from trainer_agent.steering.links import LinkFactory, MuteLink, default_link
from trainer_agent.steering.protection import LossWatch, Protection
from trainer_agent.steering.session import Identity, SteeringSession
from trainer_agent.telemetry import Telemetry
from trainer_agent.trainer_actions import TrainerActions
from trainer_agent.trainer_view import boundary_of, numbers_in, saved_state

if TYPE_CHECKING:
    from transformers.trainer_callback import TrainerControl, TrainerState
    from transformers.training_args import TrainingArguments

    from trainer_agent.discovery import Found

logger = logging.getLogger(__name__)

_STATE_KEY = "steering"


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
        control_plane: Address of the control plane, ``host:port``, or those of its replicas,
            ``a:50051,b:50051``; None: the environment variable
            ``MIDCOURSE_CONTROL_PLANE``, else ``127.0.0.1:50051``.
        labels: Labels of the job, for finding it again.
        guard_rails: Limits that nobody gets past, by live parameter. Where one is for a parameter
            that the run does not have, the run is not steered.
        parameters: Live parameters of the script's own.
        protection: What is done about a loss that is not finite; None: nothing. Needs a callback
            that knows its trainer.
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
        guard_rails: Mapping[str, GuardRails] | None = None,
        parameters: Iterable[LiveParameter] = (),
        protection: Protection | None = None,
        link_factory: LinkFactory = default_link,
    ) -> None:
        self._given_job = identity.given_job_id(job)
        self._control_plane = identity.control_plane_address(control_plane)
        self._labels = {str(key): str(value) for key, value in (labels or {}).items()}
        self._guard_rails = dict(guard_rails or {})
        self._own_parameters = tuple(parameters)
        self._protection = protection
        self._link_factory = link_factory
        self._trainer: weakref.ref[Any] | None = None
        self._actions: TrainerActions | None = None
        self._watch: LossWatch | None = None
        self._telemetry = Telemetry()
        self._controller: ParameterController | None = None
        self._session: SteeringSession | None = None
        self._goodbye: weakref.finalize[Any, Any] | None = None
        # Whether the loop was asked for something that it may not have done yet.
        self._asked = False
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

    @property
    def parameters(self) -> frozenset[str]:
        """Names of what the run has that can be changed live; empty as long as it does not train.

        One that can not be changed in this run is among them: its declaration says why.
        """
        specs = [] if self._controller is None else self._controller.specs()
        return frozenset(spec.name for spec in specs)

    def bind(self, trainer: Any) -> None:
        """Tell the callback which trainer it belongs to, as :func:`trainer_agent.attach` does."""
        self._trainer = weakref.ref(trainer)
        data.prepare(trainer)

    def request_stop(self) -> None:
        """Have the run save a checkpoint and end at the next boundary, also if it is paused.

        Of several ranks any may be asked, and all end at the same boundary. Does nothing where
        the run is not steered, or its ranks do not agree. May be called from a signal handler.
        """
        if (session := self._session) is not None:
            session.request_stop()

    @property
    def stop_requested(self) -> bool:
        """Whether the run, as long as it trains, is about to end as a rank was asked to stop."""
        return self._controller is not None and self._controller.stop_asked

    def settings(self) -> dict[str, Any]:
        """Return what was asked for when it was made, by argument; ``job`` None: not given."""
        return {
            "job": self._given_job,
            "control_plane": self._control_plane,
            "labels": self._labels,
            "guard_rails": self._guard_rails,
            "parameters": self._own_parameters,
            "protection": self._protection,
        }

    # ---- Hooks ----

    @harmless
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
        resumed = saved_state(saved, _STATE_KEY) if state.global_step > 0 else None
        trainer = None if self._trainer is None else self._trainer()
        run = Run(
            optimizer=kwargs.get("optimizer"),
            lr_scheduler=kwargs.get("lr_scheduler"),
            model=kwargs.get("model"),
            trainer=trainer,
            args=args,
            state=state,
            method=identity.training_method(trainer, args),
        )
        ranks, apart = met(args.process_index, args.world_size, args)
        try:
            found = find(run, self._own_parameters)
            self._actions = TrainerActions(trainer, args)
            ranks, instance_id, lost = shared_instance_id(ranks, identity.new_instance_id())
            self._open_session(run, found, ranks, instance_id, resumed)
        except Exception:
            ranks.close()  # which tells the others at once
            raise
        session, controller = self._session, self._controller
        assert session is not None
        assert controller is not None
        try:
            if (apart := apart or lost) is not None:
                logger.warning("job %s: %s", self._job_id, apart.message)
                controller.switch_off(apart.reason, apart.message)
            if resumed is not None:
                controller.load_state_dict(
                    resumed["controller"],
                    same_job=self._given_job in {None, resumed["job"]},
                    checkpoint=self._actions.checkpoint(state.global_step),
                )
            left = roll_back.take_over()
            if left is not None:
                controller.going_back.go_on(left, boundary_of(state))
            rails.check_names(self._guard_rails, found.parameters)
            if self._protection is not None:
                self._watch = LossWatch.of(trainer, boundary_of(state).next_step)
        except Exception as error:
            session.leave_ranks(error, "on_train_begin")
            raise
        finally:
            session.start()

    # These two run at every step, where wrapping them would cost as much as they do.

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Note what the step used."""
        try:
            if self._session is not None:
                self._session.optimizer_stepped()
        except Exception as error:  # noqa: BLE001 - nothing of ours may stop a training run
            self.hook_failed("on_optimizer_step", error)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Work at the boundary between two steps."""
        session = self._session
        if session is None:
            return
        try:
            last = control.should_training_stop or 0 < state.max_steps <= state.global_step
            pausing = control.should_evaluate or control.should_save
            boundary = boundary_of(state)
            try:
                if self._watch is not None:
                    found = self._watch.alarm(boundary.next_step)
                    if found is not None:
                        session.loss_alarm(*found)
            finally:
                self._asked = session.step_done(boundary, last=last, pausing=pausing)
            if self._asked and self._actions is not None:
                self._actions.hold(session, control)
        except Exception as error:  # noqa: BLE001 - nothing of ours may stop a training run
            self.hook_failed("on_step_end", error)

    # A run that is held is held further here, once the framework has done what was wanted of it.

    @harmless
    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Go on holding."""
        if self._session is not None and self._actions is not None:
            self._actions.hold(self._session, control)

    @harmless
    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Go on holding."""
        if self._session is not None and self._actions is not None:
            self._actions.hold_before_step(self._session, control)

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Go on holding."""
        if not self._asked:
            return
        try:
            if self._session is not None and self._actions is not None:
                self._actions.hold_before_step(self._session, control)
        except Exception as error:  # noqa: BLE001 - nothing of ours may stop a training run
            self.hook_failed("on_step_begin", error)

    @harmless
    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Report what was asked to be evaluated."""
        self._telemetry.interrupted()
        session, actions = self._session, self._actions
        if session is None or actions is None or ActionKind.EVALUATE not in session.actions.wanted:
            return
        actions.evaluated(numbers_in(metrics or {}), session)

    @harmless
    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Report the checkpoint that was asked for."""
        self._telemetry.interrupted()
        session, actions = self._session, self._actions
        if session is None or actions is None:
            return
        for kind in (ActionKind.SAVE_CHECKPOINT, ActionKind.STOP):
            if kind in session.actions.wanted:
                checkpoint = actions.checkpoint(state.global_step)
                session.action_done(kind, update_pb2.ActionResult(checkpoint=checkpoint))

    @harmless
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
            self._session.log(state.global_step, self._telemetry.logged(numbers_in(logs)))

    @harmless
    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Settle what is open and say that training is done."""
        try:
            if (session := self._session) is not None:
                try:
                    if self._actions is not None:
                        self._actions.ask_directly(session, control)
                finally:
                    session.finish(boundary_of(state))
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
                state = {"job": self._job_id, "controller": self._controller.state_dict()}
            except Exception as error:  # noqa: BLE001 - it must not keep a checkpoint from being saved
                self.hook_failed("state", error)
        return {"args": {}, "attributes": {}, _STATE_KEY: state}

    # ---- Within ----

    def _open_session(
        self,
        run: Run,
        found: Found,
        ranks: Ranks,
        instance_id: str,
        resumed: dict[str, Any] | None,
    ) -> None:
        assert self._actions is not None
        first = ranks.rank == 0 and run.state.is_world_process_zero
        saved = None if resumed is None else resumed["job"]
        self._job_id = identity.job_id_of(self._given_job, saved, run.method, tell=first)
        self._controller = controller = ParameterController(
            found.parameters,
            instance_id,
            actions=Actions(self._actions.offer(), self._actions.find_checkpoint),
            guard_rails=self._guard_rails,
            protection=self._protection,
            ranks=ranks,
        )
        who = Identity(self._job_id, instance_id, self._control_plane, run.method, self._labels)
        self._telemetry = Telemetry.of_trainer(run.args)
        self._session = session = SteeringSession(
            who,
            controller,
            boundary_of(run.state),
            link_factory=self._link_factory if first else MuteLink,
            step_metrics=found.metrics,
            measures=self._telemetry.measures(),
            max_epochs=float(run.args.num_train_epochs) if run.args.max_steps <= 0 else None,
            ranks=ranks,
        )
        self._asked = True  # what a roll back brings with it is looked at in front of a step
        self._goodbye = goodbye_at_the_latest(self, session)

    def _end_session(self, error: str | None) -> None:
        session, self._session = self._session, None
        controller, self._controller = self._controller, None
        watch, self._watch = self._watch, None
        if watch is not None:
            watch.detach()
        if self._goodbye is not None:
            self._goodbye.detach()
        if session is not None:
            session.close(error)
        if controller is not None:
            controller.detach()

    def hook_failed(self, component: str, error: Exception) -> None:
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
