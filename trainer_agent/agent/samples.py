"""Metrics that wait for the control plane, bounded, and kept until it has them on disk."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from midcourse.agent.v1 import session_pb2
from trainer_agent.link.thinning import thinned_out

DEFAULT_LIMIT: Final = 100_000
"""Most samples kept: about 10 MB, and at three metrics a step more than 30,000 steps."""


@dataclass(slots=True)
class _Row:
    """What was measured at one step.

    Attributes:
        sent: Sequence number of the message that carried it in this stream; 0: none has.
    """

    step: int
    time_micros: int
    names: tuple[str, ...]
    values: tuple[float, ...]
    sent: int = 0


class SampleBuffer:
    """Keeps samples in the order in which they came, from intake to acknowledgement.

    When it is full, rows of the middle go, as :func:`thinned_out` says, and are counted.

    Attributes:
        dropped: Samples dropped so far.
    """

    def __init__(self, limit: int = DEFAULT_LIMIT) -> None:
        """Makes an empty buffer for ``limit`` samples."""
        self._rows: deque[_Row] = deque()
        self._unsent = 0  # of the rows, the newest so many
        self._unsent_samples = 0
        self._limit = limit
        self._samples = 0
        self._names: dict[tuple[str, ...], tuple[str, ...]] = {}
        self.dropped = 0

    def __len__(self) -> int:
        """Returns how many samples are kept."""
        return self._samples

    @property
    def unsent(self) -> int:
        """How many samples no message of this stream carries."""
        return self._unsent_samples

    def add(
        self, step: int, time_micros: int, names: Sequence[str], values: Sequence[float]
    ) -> None:
        """Takes the samples of one step, and makes room if there are too many."""
        if not names:
            return
        row = _Row(step, time_micros, self._shared(tuple(names)), tuple(values))
        self._rows.append(row)
        self._unsent += 1
        self._samples += len(row.values)
        self._unsent_samples += len(row.values)
        while self._samples > self._limit:
            self._thin()

    def take(self, most: int, sequence: int) -> list[session_pb2.MetricColumn]:
        """Returns the oldest unsent samples in columns, and notes that they go out.

        Args:
            most: Most samples to return; at least 1.
            sequence: Number of the message that carries them.
        """
        rows: list[_Row] = []
        room = most
        index = len(self._rows) - self._unsent
        while self._unsent and room > 0:
            row = self._rows[index]
            if len(row.values) > room:
                if rows:
                    break
                self._split(index, room)
                row = self._rows[index]
            row.sent = sequence
            rows.append(row)
            room -= len(row.values)
            index += 1
            self._unsent -= 1
            self._unsent_samples -= len(row.values)
        return _columns(rows)

    def acknowledged(self, sequence: int) -> None:
        """Lets go of what went out in messages up to this number."""
        while len(self._rows) > self._unsent and self._rows[0].sent <= sequence:
            self._samples -= len(self._rows.popleft().values)

    def begin_stream(self) -> None:
        """Notes that a new stream begins: all that is not acknowledged goes out anew."""
        for row in self._rows:
            row.sent = 0
        self._unsent = len(self._rows)
        self._unsent_samples = self._samples

    def _shared(self, names: tuple[str, ...]) -> tuple[str, ...]:
        # Steps have the same names over and over: one tuple of them does for all.
        if names not in self._names:
            if len(self._names) >= 1024:
                self._names.clear()
            self._names[names] = tuple(sys.intern(name) for name in names)
        return self._names[names]

    def _split(self, index: int, room: int) -> None:
        """Makes two rows of one that has more samples than a message may carry."""
        row = self._rows[index]
        rest = _Row(row.step, row.time_micros, row.names[room:], row.values[room:])
        row.names, row.values = row.names[:room], row.values[:room]
        self._rows.insert(index + 1, rest)
        self._unsent += 1

    def _thin(self) -> None:
        going = thinned_out(range(len(self._rows)))
        kept = [row for index, row in enumerate(self._rows) if index not in going]
        samples = sum(len(row.values) for row in kept)
        self.dropped += self._samples - samples
        self._rows = deque(kept)
        self._samples = samples
        unsent = [row for row in kept if row.sent == 0]
        self._unsent = len(unsent)
        self._unsent_samples = sum(len(row.values) for row in unsent)


def _columns(rows: Sequence[_Row]) -> list[session_pb2.MetricColumn]:
    columns: dict[str, list[tuple[int, float, int]]] = {}
    for row in rows:
        for name, value in zip(row.names, row.values, strict=True):
            columns.setdefault(name, []).append((row.step, value, row.time_micros))
    packed = []
    for name, samples in columns.items():
        samples.sort(key=lambda sample: sample[0])  # stable: of one step, the newest comes last
        steps, values, times = zip(*samples, strict=True)
        packed.append(
            session_pb2.MetricColumn(name=name, steps=steps, values=values, time_micros=times)
        )
    return packed
