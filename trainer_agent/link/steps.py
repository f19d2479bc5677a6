"""Steps are reported together where they are short; the other end takes them apart.

Waking the agent takes the training process longer than all the rest of a step's work here. So at
most some twenty times a second it is done.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

from midcourse.link.v1 import link_pb2

REPORT_INTERVAL_NANOS: Final = 50_000_000
"""Steps wait at most about so long for those that come after them."""

MOST_STEPS: Final = 1_000
"""Steps in one message."""


class StepBatch:
    """Steps that wait to be reported together."""

    def __init__(self) -> None:
        """Begins empty."""
        self._steps: list[int] = []
        self._times: list[int] = []
        self._values: list[float] = []
        self._names: tuple[str, ...] = ()
        self._epoch: float | None = None
        self._max_steps: int | None = None

    def __len__(self) -> int:
        """Returns how many steps wait."""
        return len(self._steps)

    def takes(self, metrics: Mapping[str, float]) -> bool:
        """Tells whether a step with these metrics fits to those that wait."""
        steps = len(self._steps)
        return not steps or (steps < MOST_STEPS and self._names == tuple(metrics))

    def add(
        self, step: int, time_nanos: int, epoch: float | None, metrics: Mapping[str, float]
    ) -> None:
        """Takes a step; one that ``takes`` says yes to."""
        if not self._steps:
            self._names = tuple(metrics)
        self._steps.append(step)
        self._times.append(time_nanos)
        self._values.extend(metrics.values())
        self._epoch = epoch

    def plan(self, max_steps: int) -> None:
        """Has the next message tell how many steps are planned."""
        self._max_steps = max_steps

    def take(self) -> link_pb2.TrainerMessage:
        """Returns the message that reports what waits, and forgets it."""
        message = link_pb2.TrainerMessage()
        batch = message.steps
        batch.steps.extend(self._steps)
        batch.time_nanos.extend(self._times)
        batch.names.extend(self._names)
        batch.values.extend(self._values)
        if self._epoch is not None:
            batch.epoch = self._epoch
        if self._max_steps is not None:
            batch.max_steps = self._max_steps
        self._max_steps = None
        self._steps.clear()
        self._times.clear()
        self._values.clear()
        return message


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
