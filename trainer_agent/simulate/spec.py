"""What a light job is like."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from trainer_agent.simulate.parameters import DEFAULT_VALUES

if TYPE_CHECKING:
    from collections.abc import Mapping

    from trainer_agent.parameters import Value

METRICS: Final = ("loss", "learning_rate", "grad_norm")
"""What a light job can report with a step."""


@dataclass(frozen=True, slots=True)
class LightJobSpec:
    """What a light job is like.

    Attributes:
        job_id: Id of the job.
        control_plane: Address of the control plane.
        labels: Labels of the job.
        method: Training method; empty: unknown.
        step_time: Seconds that a step takes.
        max_steps: Steps until it ends by itself; None: it does not.
        report_every: Seconds between two reported steps, unless there is something else to tell.
            What there is nothing to tell of costs nothing.
        seed: What the loss depends on, beside the learning rate.
        values: Parameters that can be changed live, with what they begin with.
        metrics: What is reported with a step; of :data:`METRICS`.
    """

    job_id: str
    control_plane: str
    labels: Mapping[str, str] = field(default_factory=dict)
    method: str = "sft"
    step_time: float = 0.1
    max_steps: int | None = None
    report_every: float = 1.0
    seed: int | str = 0
    values: Mapping[str, Value] = field(default_factory=lambda: DEFAULT_VALUES)
    metrics: tuple[str, ...] = METRICS
