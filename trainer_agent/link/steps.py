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

Step = tuple[int, int, float | None, Mapping[str, float]]


class StepBatch:
    """Steps that wait to be reported together.

    Attributes:
        steps: They: the step, when it ended in nanoseconds since 1970 UTC, the epoch, and the
            metrics, which must not be changed any more. Filled from outside, one at every step.
    """

    def __init__(self) -> None:
        """Begins empty."""
        self.steps: list[Step] = []
        self._max_steps: int | None = None

    def plan(self, max_steps: int) -> None:
        """Has the next message tell how many steps are planned."""
        self._max_steps = max_steps

    def take(self) -> Iterator[link_pb2.TrainerMessage]:
        """Returns the messages that report what waits, and forgets it."""
        steps, self.steps = self.steps, []
        max_steps, self._max_steps = self._max_steps, None
        for names, alike in itertools.groupby(steps, lambda step: tuple(step[3])):
            every = list(alike)
            for first in range(0, len(every), MOST_STEPS):
                numbers, times, epochs, metrics = zip(
                    *every[first : first + MOST_STEPS], strict=True
                )
                message = link_pb2.TrainerMessage()
                batch = message.steps
                batch.steps.extend(numbers)
                batch.time_nanos.extend(times)
                batch.names.extend(names)
                batch.values.extend(
                    itertools.chain.from_iterable(each.values() for each in metrics)
                )
                if epochs[-1] is not None:
                    batch.epoch = epochs[-1]
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
