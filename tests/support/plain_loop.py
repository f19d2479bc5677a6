"""A training loop of one weight, steered by a controller and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.optim.lr_scheduler import LambdaLR

from midcourse.agent.v1 import session_pb2
from tests.support.scripted_link import delivery
from trainer_agent.parameters import Boundary, LiveParameter
from trainer_agent.parameters.learning_rate import LearningRate
from trainer_agent.steering.controller import ParameterController

START_RATE = 0.5


class PlainLoop:
    """Steps an optimizer as transformers does and says so to a controller.

    Args:
        shape: The schedule, by steps done; None: the rate is constant.
        max_steps: Steps planned.
        extra: More live parameters.
        options: For the controller, such as ``actions``.
    """

    def __init__(
        self,
        shape: Callable[[int], float] | None = None,
        max_steps: int | None = 100,
        extra: dict[str, LiveParameter] | None = None,
        **options: Any,
    ) -> None:
        self._options = options
        weight = torch.nn.Parameter(torch.ones(1))
        self.optimizer = torch.optim.SGD([weight], lr=START_RATE)
        self.scheduler: Any = None if shape is None else LambdaLR(self.optimizer, shape)
        self.max_steps = max_steps
        self.global_step = 0
        self.used: dict[int, float] = {}
        self.nanos = 0
        self.outcomes: list[session_pb2.UpdateOutcome] = []
        self.controller = self.new_controller(extra)

    def held(self) -> list[int]:
        """Return the revisions that the controller holds for a later step."""
        return list(self.controller._held)

    def new_controller(self, extra: dict[str, LiveParameter] | None = None) -> ParameterController:
        """Return a controller over this loop's optimizer, as for a new training process."""
        parameters: dict[str, LiveParameter] = {
            "learning_rate": LearningRate(self.optimizer, self.scheduler),
            **(extra or {}),
        }
        return ParameterController(
            parameters,
            "instance",
            wall_clock=lambda: 1_700_000_000_000_000_000,
            **self._options,
        )

    @property
    def rate(self) -> float:
        """The learning rate that the next step uses."""
        return float(self.optimizer.param_groups[0]["lr"])

    @property
    def boundary(self) -> Boundary:
        return Boundary(self.global_step, self.max_steps)

    def deliver(self, revision: int, *changes: Any, **options: Any) -> None:
        message = delivery(revision, *changes, **options).delivery
        deadline = (
            message.deadline_monotonic_nanos
            if message.HasField("deadline_monotonic_nanos")
            else None
        )
        self.controller.deliver(message.update, deadline)

    def at_boundary(self, *, last: bool = False) -> None:
        """Reach a boundary without a step, as at the start."""
        for revision in self.controller.overdue(self.nanos):
            self.controller.deadline_passed(revision, self.boundary)
        self.controller.at_boundary(self.boundary, last=last)
        self.outcomes += self.controller.take_outcomes()

    def step(self, *, last: bool = False) -> None:
        self.used[self.global_step + 1] = self.rate
        self.optimizer.step()
        self.controller.optimizer_stepped()
        if self.scheduler is not None:
            self.scheduler.step()
        self.global_step += 1
        self.at_boundary(last=last)

    def steps(self, count: int) -> None:
        for _ in range(count):
            self.step()

    def finish(self) -> None:
        self.controller.finish(self.boundary)
        self.outcomes += self.controller.take_outcomes()

    def outcome(self, revision: int) -> session_pb2.UpdateOutcome:
        """Return the one outcome of an update."""
        (outcome,) = [each for each in self.outcomes if each.revision == revision]
        return outcome
