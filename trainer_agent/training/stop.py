"""Stops a run when its process is told to: after a step, with a checkpoint, on every rank."""

from __future__ import annotations

import signal
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from transformers.trainer_callback import TrainerCallback

from trainer_agent.steering import roll_back

if TYPE_CHECKING:
    from transformers.trainer_callback import TrainerControl, TrainerState
    from transformers.training_args import TrainingArguments

    from trainer_agent.callback import RuntimeParameterUpdateCallback


class StopOnSignal(TrainerCallback):
    """Takes SIGINT and SIGTERM.

    Before training has begun they end the process at once; afterwards the first one has the trainer
    save and stop at a boundary, and a second one ends the process; but not under a launcher, which
    kills it when that is meant: who signals all processes of a service has this one signalled
    twice, once by the launcher.

    A run that is paused ends no step. So Midcourse's callback is asked to stop as well, which ends
    the pause; its ranks agree on that by themselves.

    Ranks must stop at the same boundary. The first one writes down which: the step after the one
    that it has just done. No other rank can end that step before the first has taken part in it, so
    all of them find the note by then; no message between them is needed.

    Args:
        rank: This process's rank.
        note: File that the ranks share; None: this one is alone.

    Attributes:
        steering: Midcourse's callback; None: there is none.
        stopped_by: The signal that training stopped for; None: it did not.
    """

    def __init__(self, rank: int = 0, note: Path | None = None) -> None:
        self.steering: RuntimeParameterUpdateCallback | None = None
        self.stopped_by: signal.Signals | None = None
        self._rank = rank
        self._note = note
        self._training = False
        self._asked: signal.Signals | None = None
        self._stop_at: int | None = None

    def install(self) -> None:
        """Take the signals from now on. Only in the main thread."""
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._received)

    def _received(self, number: int, frame: FrameType | None) -> None:
        if self._training and self._asked is None:
            self._asked = signal.Signals(number)
            if self.steering is not None:
                self.steering.request_stop()
        elif not (self._training and roll_back.supervised()):
            raise SystemExit(128 + number)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """From here on a stop waits for a boundary."""
        self._training = True

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Stop and save, where that was asked for."""
        if self._stop_at is None:
            self._agree(state.global_step)
        if self._stop_at is not None and state.global_step >= self._stop_at:
            self.stopped_by = self._asked
            control.should_training_stop = True
            control.should_save = True

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """From here on a signal ends the process."""
        self._training = False
        if self.stopped_by is None and self.steering is not None and self.steering.stop_requested:
            self.stopped_by = self._asked or signal.SIGTERM  # which another rank was sent

    def _agree(self, step: int) -> None:
        if self._note is None:
            self._stop_at = None if self._asked is None else step
        elif self._rank == 0:
            if self._asked is not None:
                self._stop_at = step + 1
                new = self._note.with_suffix(".new")
                new.write_text(f"{self._stop_at} {int(self._asked)}", encoding="utf-8")
                new.replace(self._note)
        elif self._note.exists():
            at, number = self._note.read_text(encoding="utf-8").split()
            self._stop_at, self._asked = int(at), signal.Signals(int(number))
