"""How a transformers trainer carries out actions.

The ordinary way is the framework's own: a flag of ``TrainerControl``, seen to after the step's
callbacks. A run that is held there for a second time, in front of the next step, has no such way:
there the trainer is asked directly.
"""

from __future__ import annotations

import inspect
import logging
import os
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from midcourse.control.v1 import update_pb2
from trainer_agent.parameters import Refused
from trainer_agent.steering import roll_back
from trainer_agent.steering.actions import ActionKind, Offer
from trainer_agent.trainer_view import numbers_in

if TYPE_CHECKING:
    from transformers.trainer_callback import TrainerControl
    from transformers.training_args import TrainingArguments

    from trainer_agent.steering.session import SteeringSession

logger = logging.getLogger(__name__)

_SAVES = (ActionKind.SAVE_CHECKPOINT, ActionKind.STOP)


class TrainerActions:
    """The actions of one run.

    Args:
        trainer: The trainer; None: it is not known.
        args: Its arguments.
    """

    def __init__(self, trainer: Any, args: TrainingArguments) -> None:
        # The trainer has the callback, which has this: a circle would keep a model in memory.
        self._known = None if trainer is None else weakref.ref(trainer)
        self._args = args
        self._metrics: dict[str, float] = {}
        self._evaluations = 0
        self._evaluation_flagged = False
        save = getattr(trainer, "_save_checkpoint", None)
        # A private method: used only as long as it is called as it was in transformers 4 and 5.
        self._can_save = callable(save) and list(inspect.signature(save).parameters) == [
            "model",
            "trial",
        ]

    @property
    def _trainer(self) -> Any:
        return None if self._known is None else self._known()

    def offer(self, environ: Mapping[str, str] = os.environ) -> Offer:
        """Return why each action can not be carried out; None: it can."""
        return {
            ActionKind.PAUSE: None,
            ActionKind.RESUME: None,
            ActionKind.SAVE_CHECKPOINT: None,
            ActionKind.EVALUATE: self._why_not_evaluate(),
            ActionKind.STOP: None,
            ActionKind.ROLL_BACK: roll_back.why_not(environ),
        }

    def find_checkpoint(self, path: str, before: int | None) -> str:
        """Return the checkpoint to go back to.

        Raises:
            Refused: There is none, or nobody to start the run there.
        """
        why_not = roll_back.why_not()  # again: the launcher may have gone since it was offered
        if why_not is not None:
            raise Refused("ACTION_UNAVAILABLE", f"the run can not go back: {why_not}")
        return roll_back.find_checkpoint(str(self._args.output_dir), path, before)

    def checkpoint(self, step: int) -> str:
        """Return the path of the checkpoint that was saved at a step; empty: it is not there."""
        path = Path(str(self._args.output_dir)) / f"checkpoint-{step}"
        return str(path.absolute()) if path.is_dir() else ""

    def hold(self, session: SteeringSession, control: TrainerControl) -> None:
        """Hold a paused run until the framework has something to do, and have it do that.

        Raises:
            RollBackExit: It goes back to a checkpoint.
        """
        session.hold()
        while self._go_back_if_asked(session):
            session.hold()
        self._raise_flags(session.actions.wanted, control)

    def hold_before_step(self, session: SteeringSession, control: TrainerControl) -> None:
        """Hold a paused run where the framework has begun the next step, data in hand.

        A stop ends the pause and comes after that step, which the framework does not give up
        without having trained on a part of its data.

        Raises:
            RollBackExit: It goes back to a checkpoint.
        """
        self._ask_again(session, control)
        actions = session.actions
        while actions.paused:  # which a stop ends
            session.hold(begun=True)
            self._go_back_if_asked(session)
            if actions.stopping or not actions.wanted:
                continue
            if not self.ask_directly(session, control):
                session.hold(patiently=True, begun=True)
                self._go_back_if_asked(session)

    def _go_back_if_asked(self, session: SteeringSession) -> bool:
        """Go back where that is asked; returns whether it was, and could not be done.

        Raises:
            RollBackExit: It goes back.
        """
        left = session.roll_back
        if left is None:
            return False
        failure: Exception | None = None
        try:
            if session.is_first:
                left.write(os.environ[roll_back.FILE_VARIABLE])
        except (OSError, KeyError) as error:
            failure = error
        if session.leaves(failure):
            logger.warning("going back to %s", left.checkpoint)
            raise roll_back.RollBackExit
        return True

    def _raise_flags(self, wanted: set[ActionKind], control: TrainerControl) -> None:
        """Have the framework do what is wanted, after this step."""
        if ActionKind.EVALUATE in wanted:
            control.should_evaluate = self._evaluation_flagged = True
        if wanted.intersection(_SAVES):
            control.should_save = True
        if ActionKind.STOP in wanted:
            control.should_training_stop = True

    def _ask_again(self, session: SteeringSession, control: TrainerControl) -> None:
        """See to an evaluation that the framework was flagged to do, and told nothing of.

        Some trainers' ``evaluate`` tells no callback, and some callbacks take the flag back. It
        would be asked for at every step.
        """
        flagged, self._evaluation_flagged = self._evaluation_flagged, False
        if not flagged or ActionKind.EVALUATE not in session.actions.wanted:
            return
        if not self._evaluate(session, control):
            logger.warning(
                "the trainer was asked to evaluate, and has told its callbacks of no evaluation: "
                "its metrics are not known"
            )
            self._end_evaluation(session)

    def ask_directly(self, session: SteeringSession, control: TrainerControl) -> bool:
        """Have the trainer evaluate and save now; returns whether it could do some of it."""
        evaluated = self._evaluate(session, control)
        return self._save(session, control) or evaluated

    def _evaluate(self, session: SteeringSession, control: TrainerControl) -> bool:
        trainer, wanted = self._trainer, session.actions.wanted
        if trainer is None or ActionKind.EVALUATE not in wanted:
            return False
        flags = dict(control.__dict__)
        metrics = trainer.evaluate()
        control.__dict__.update(flags)
        if ActionKind.EVALUATE in wanted:  # it has told no callback
            self._metrics.update(numbers_in(metrics if isinstance(metrics, Mapping) else {}))
            self._end_evaluation(session)
        return True

    def _save(self, session: SteeringSession, control: TrainerControl) -> bool:
        trainer = self._trainer
        if trainer is None or not self._can_save or session.actions.wanted.isdisjoint(_SAVES):
            return False
        flags = dict(control.__dict__)
        trainer._save_checkpoint(trainer.model_wrapped, trial=None)  # noqa: SLF001 - see above
        trainer.callback_handler.on_save(self._args, trainer.state, control)
        control.__dict__.update(flags)
        return True

    def evaluated(self, metrics: Mapping[str, float], session: SteeringSession) -> None:
        """Take the metrics of one dataset; those of all are the result."""
        self._metrics.update(metrics)
        self._evaluations += 1
        datasets = getattr(self._trainer, "eval_dataset", None)
        if not isinstance(datasets, dict) or self._evaluations >= len(datasets):
            self._end_evaluation(session)

    def _end_evaluation(self, session: SteeringSession) -> None:
        metrics, self._metrics, self._evaluations = self._metrics, {}, 0
        session.action_done(ActionKind.EVALUATE, update_pb2.ActionResult(metrics=metrics))

    def _why_not_evaluate(self) -> str | None:
        if self._trainer is None:
            if str(getattr(self._args.eval_strategy, "value", "no")) != "no":
                return None
            return (
                "the callback does not know the trainer, and so not whether it has an "
                "eval_dataset; use attach(trainer)"
            )
        if getattr(self._trainer, "eval_dataset", None) is None:
            return "the trainer has no eval_dataset"
        return None
