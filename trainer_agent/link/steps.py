"""Steps are reported together where they are short; the other end takes them apart.

Waking the agent takes the training process longer than all the rest of a step's work here. So at
most some five times a second it is done, which the agent's own heartbeats do not show.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from typing import Final

from midcourse.link.v1 import link_pb2

REPORT_INTERVAL_NANOS: Final = 200_000_000
"""Steps wait at most about so long for those that come after them."""

MOST_STEPS: Final = 1_000
"""Steps in one message."""

_Step = tuple[int, int, float | None, Mapping[str, float]]


class StepBatch:
    """Steps that wait to be reported together.

    Taking one in is on every step's way, so it does nothing but keep it.
    """

    def __init__(self) -> None:
        """Begins empty."""
        self._steps: list[_Step] = []
        self._max_steps: int | None = None

    def __len__(self) -> int:
        """Returns how many steps wait."""
        return len(self._steps)

    def add(
        self, step: int, time_nanos: int, epoch: float | None, metrics: Mapping[str, float]
    ) -> None:
        """Takes a step; ``metrics`` must not be changed afterwards."""
        self._steps.append((step, time_nanos, epoch, metrics))

    def plan(self, max_steps: int) -> None:
        """Has the next message tell how many steps are planned."""
        self._max_steps = max_steps

    def take(self) -> Iterator[link_pb2.TrainerMessage]:
        """Returns the messages that report what waits, and forgets it."""
        steps, self._steps = self._steps, []
        max_steps, self._max_steps = self._max_steps, None
        for names, alike in itertools.groupby(steps, lambda step: tuple(step[3])):
            every = list(alike)
            for first in range(0, len(every), MOST_STEPS):
                some = every[first : first + MOST_STEPS]
                message = link_pb2.TrainerMessage()
                batch = message.steps
                batch.steps.extend([step for step, _, _, _ in some])
                batch.time_nanos.extend([time_nanos for _, time_nanos, _, _ in some])
                batch.names.extend(names)
                batch.values.extend([value for *_, each in some for value in each.values()])
                epoch = some[-1][2]
                if epoch is not None:
                    batch.epoch = epoch
                if max_steps is not None:
                    batch.max_steps = max_steps
                yield message


def reports(batch: link_pb2.StepReports) -> Iterator[link_pb2.StepReport]:
    """Takes steps that were reported together apart, oldest first.

    Of a batch that does not hold together, whatever it has whole steps of is taken.
    """
    names, width = list(batch.names), len(batch.names)
    last = len(batch.steps) - 1
    for index, (step, time_nanos) in enumerate(zip(batch.steps, batch.time_nanos, strict=False)):
        values = batch.values[index * width : (index + 1) * width]
        report = link_pb2.StepReport(step=step, time_nanos=time_nanos)
        if len(values) == width:
            report.names.extend(names)
            report.values.extend(values)
        if index == last:
            if batch.HasField("epoch"):
                report.epoch = batch.epoch
            if batch.HasField("max_steps"):
                report.max_steps = batch.max_steps
        yield report
