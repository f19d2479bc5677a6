"""Ends a run, before its first step, whose limits are for parameters that it does not have."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from transformers.trainer_callback import TrainerCallback

from trainer_agent.steering.guard_rails import check_names
from trainer_agent.training.document import ConfigurationError

if TYPE_CHECKING:
    from transformers.trainer_callback import TrainerControl, TrainerState
    from transformers.training_args import TrainingArguments

    from trainer_agent.training.settings import Settings


class KnownLimits(TrainerCallback):
    """Refuses to train where ``midcourse.guard_rails`` names a parameter that there is not.

    What a run has is known once its optimizer is made. It would not be steered.

    Args:
        settings: Configuration.
        attached: The callback that has looked for parameters by then.
    """

    def __init__(self, settings: Settings, attached: Any) -> None:
        self._settings = settings
        self._attached = attached

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Compare the names.

        Raises:
            ConfigurationError: There is one that the run does not have.
        """
        present = self._attached.parameters
        if not present:
            return  # it could not look, and has said why
        try:
            check_names(self._settings.sections.midcourse.guard_rails, present)
        except ValueError as error:
            problem = self._settings.problem("midcourse.guard_rails", str(error))
            raise ConfigurationError([problem]) from error
