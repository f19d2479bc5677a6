"""How fast a run goes, by the host's clock. What is not known is left out."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any, Final

Measure = Callable[[dict[str, float]], None]
"""Adds what it knows of the step that has just run to what the step reports."""

STEP_SECONDS: Final = "step_seconds"
"""Seconds from one optimizer step to the next, with the data that was waited for."""

SAMPLES_PER_SECOND: Final = "samples_per_second"
"""Samples of a whole batch, on all ranks, by the mean time of the steps since the last log."""

TOKENS_PER_SECOND: Final = "tokens_per_second"
"""Tokens since the trainer last logged how many there were, by the seconds of its steps."""

_TOKEN_COUNTERS: Final = ("num_input_tokens_seen", "num_tokens")
"""Under which names transformers and TRL log the tokens trained on so far."""


class Pace:
    """Times the steps of a run.

    Args:
        samples: Returns how many samples a step takes, on all ranks; None: unknown.
        clock: Seconds.
    """

    def __init__(
        self,
        samples: Callable[[], int | None] = lambda: None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._samples = samples
        self._clock = clock
        self._last: float | None = None
        self._steps = 0
        self._trained = 0.0
        self._window: tuple[int, float, int | None] = (0, 0.0, None)
        self._counter: tuple[str, float, float] | None = None

    def interrupted(self) -> None:
        """Note that something else than training takes its time now, or just has.

        An evaluation, a checkpoint, a pause: how long the step around it took is not known.
        """
        self._last = None

    def logged(self, logs: Mapping[str, float]) -> dict[str, float]:
        """Return what follows from what the trainer has logged.

        Args:
            logs: Its metrics; among them, perhaps, how many tokens there were.
        """
        return {**self._samples_per_second(), **self._tokens_per_second(logs)}

    def measure(self, told: dict[str, float]) -> None:
        """Add how long the step took, right after each optimizer step."""
        now, last = self._clock(), self._last
        self._last = now
        if last is None:
            # Tokens of a step whose time is not known would make the rest look fast.
            self._counter = None
            return
        told[STEP_SECONDS] = seconds = now - last
        self._steps += 1
        self._trained += seconds

    def _samples_per_second(self) -> dict[str, float]:
        steps, trained, before = self._window
        samples = self._samples()
        self._window = (self._steps, self._trained, samples)
        steps, seconds = self._steps - steps, self._trained - trained
        # Where the batch has changed since the last log, each step had its own.
        if samples is None or seconds <= 0 or before not in {None, samples}:
            return {}
        return {SAMPLES_PER_SECOND: samples * steps / seconds}

    def _tokens_per_second(self, logs: Mapping[str, float]) -> dict[str, float]:
        name = next((each for each in _TOKEN_COUNTERS if each in logs), None)
        if name is None:
            return {}
        before, self._counter = self._counter, (name, logs[name], self._trained)
        if before is None or before[0] != name:
            return {}
        tokens, seconds = logs[name] - before[1], self._trained - before[2]
        return {TOKENS_PER_SECOND: tokens / seconds} if tokens >= 0 and seconds > 0 else {}


def samples_per_step(args: Any) -> Callable[[], int | None]:
    """Return how to ask a run of transformers how many samples one of its steps takes.

    An epoch's last batch may be smaller; it counts as whole.

    Args:
        args: The ``TrainingArguments``; read anew at every step, as the batch can change live.
    """
    if getattr(args, "parallelism_config", None) is not None:
        return lambda: None  # not every rank has a batch of its own then
    split = getattr(getattr(args, "accelerator_config", None), "split_batches", False)
    # One process may drive several GPUs, or there may be one for each.
    copies = max(1, args.n_gpu) * (1 if split else args.world_size)

    def samples() -> int | None:
        return int(args.per_device_train_batch_size * args.gradient_accumulation_steps * copies)

    return samples
