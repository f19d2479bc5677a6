"""What a run tells of itself beside what it logs: how fast it goes, how full its GPU is.

Everything is read from the host: nothing here waits for a device. What is not known is left out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from trainer_agent.telemetry.gpu import GpuSampler, find_gpu
from trainer_agent.telemetry.pace import Measure, Pace, samples_per_step


class Telemetry:
    """The measuring instruments of one run.

    Args:
        samples: Returns how many samples a step takes, on all ranks; None: unknown.
        gpu: Samples the GPU; None: there is none.
    """

    def __init__(
        self, samples: Callable[[], int | None] = lambda: None, gpu: GpuSampler | None = None
    ) -> None:
        self._pace = Pace(samples)
        self._gpu = gpu

    @classmethod
    def of_trainer(cls, args: Any) -> Telemetry:
        """Make those of a run of transformers, given its ``TrainingArguments``."""
        return cls(samples_per_step(args), find_gpu())

    def measures(self) -> list[Measure]:
        """Return what measures every step; to be asked in order, right after an optimizer step."""
        return [self._pace.measure, *([] if self._gpu is None else [self._gpu.measure])]

    def interrupted(self) -> None:
        """Note that something else than training took its time: evaluating, saving, a pause."""
        self._pace.interrupted()

    def logged(self, metrics: Mapping[str, float]) -> dict[str, float]:
        """Return metrics together with what follows from them."""
        return {**metrics, **self._pace.logged(metrics)}
