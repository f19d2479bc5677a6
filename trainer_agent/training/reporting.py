"""Tells the launcher what the trainer does."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Final

from transformers.trainer_callback import TrainerCallback

from trainer_agent.training.display import shown

if TYPE_CHECKING:
    from transformers.trainer_callback import TrainerControl, TrainerState
    from transformers.training_args import TrainingArguments

    from trainer_agent.training.channel import Send

_INTERVAL: Final = 0.1
"""Seconds between two reports of a step: nobody sees more."""


class Reporter(TrainerCallback):
    """Sends where training is: steps, what is logged, the end.

    Args:
        send: Takes an event; neither blocks nor raises.
        attached: The callback that knows the job's id.
    """

    def __init__(self, send: Send, attached: Any) -> None:
        self._send = send
        self._attached = attached
        self._next = 0.0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Say from where to where training goes."""
        self._send(
            {
                "kind": "began",
                "job": self._attached.job_id,
                "output_dir": str(args.output_dir),
                **_where(state),
            }
        )

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Say which step is done."""
        now = time.monotonic()
        if now >= self._next:
            self._next = now + _INTERVAL
            self._send({"kind": "step", **_where(state)})

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Say what the trainer has logged."""
        metrics = shown(logs or {})
        if metrics and state.is_world_process_zero:
            self._send({"kind": "step", **_where(state)})
            self._send({"kind": "log", "metrics": metrics})

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Say where training ended."""
        self._send({"kind": "ended", **_where(state)})


def _where(state: TrainerState) -> dict[str, int | None]:
    return {
        "step": state.global_step,
        "max_steps": state.max_steps if state.max_steps > 0 else None,
    }
