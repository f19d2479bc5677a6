"""The bounded buffer of metrics."""

from __future__ import annotations

import itertools
import math

from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from trainer_agent.agent.samples import SampleBuffer


def test_samples_come_out_in_columns_ascending_by_step() -> None:
    buffer = SampleBuffer()
    buffer.add(1, 10, ["loss", "lr"], [0.5, 1e-4])
    buffer.add(3, 30, ["loss"], [math.nan])
    buffer.add(2, 31, ["loss"], [0.25])  # logged late
    columns = {column.name: column for column in buffer.take(100, 2)}
    assert list(columns) == ["loss", "lr"]
    assert list(columns["loss"].steps) == [1, 2, 3]
    assert list(columns["loss"].time_micros) == [10, 31, 30]
    assert list(columns["loss"].values)[:2] == [0.5, 0.25]
    assert math.isnan(columns["loss"].values[2])
    assert list(columns["lr"].steps) == [1]
    assert buffer.take(100, 3) == []


def test_a_step_without_metrics_takes_no_room() -> None:
    buffer = SampleBuffer()
    buffer.add(1, 10, [], [])
    assert (len(buffer), buffer.unsent) == (0, 0)


def test_a_step_with_more_samples_than_a_message_may_carry_is_split() -> None:
    buffer = SampleBuffer()
    buffer.add(1, 10, [f"m{index}" for index in range(25)], [0.0] * 25)
    sizes: list[int] = []
    while buffer.unsent:
        sizes.append(len(buffer.take(10, len(sizes) + 2)))
    assert sizes == [10, 10, 5]
    buffer.acknowledged(4)
    assert len(buffer) == 0


def test_a_long_outage_thins_the_middle_and_counts() -> None:
    buffer = SampleBuffer(limit=1000)
    for step in range(1, 20_001):
        buffer.add(step, step, ["loss"], [0.0])
    (column,) = buffer.take(10_000, 2)
    steps = list(column.steps)
    assert len(steps) <= 1000
    assert len(steps) + buffer.dropped == 20_000
    assert steps[:100] == list(range(1, 101))
    assert steps[-100:] == list(range(19_901, 20_001))
    widest = max(after - before for before, after in itertools.pairwise(steps))
    assert widest < 20_000  # thinned out, not cut off
    assert len(steps) > 500


class Buffering(RuleBasedStateMachine):
    """The buffer against a plain list: nothing is lost, sent twice in a stream, or forgotten."""

    def __init__(self) -> None:
        super().__init__()
        self.buffer = SampleBuffer()
        self.owed: list[int] = []  # steps, oldest first
        self.sent: dict[int, int] = {}
        self.step = 0
        self.sequence = 1

    @rule(names=st.integers(0, 5))
    def add(self, names: int) -> None:
        self.step += 1
        self.buffer.add(self.step, 0, [f"m{n}" for n in range(names)], [0.0] * names)
        self.owed += [self.step * 10 + n for n in range(names)]

    @rule(most=st.integers(1, 12))
    def take(self, most: int) -> None:
        self.sequence += 1
        taken = [
            step * 10 + int(column.name[1:])
            for column in self.buffer.take(most, self.sequence)
            for step in column.steps
        ]
        expected = [each for each in self.owed if each not in self.sent]
        assert len(taken) <= most
        assert sorted(taken) == expected[: len(taken)]
        assert bool(taken) == bool(expected)
        for each in taken:
            self.sent[each] = self.sequence

    @rule(data=st.data())
    def acknowledge(self, data: st.DataObject) -> None:
        upto = data.draw(st.integers(0, self.sequence))
        self.buffer.acknowledged(upto)
        self.owed = [each for each in self.owed if self.sent.get(each, upto + 1) > upto]

    @rule()
    def begin_stream(self) -> None:
        self.buffer.begin_stream()
        self.sent.clear()
        self.sequence = 1

    @invariant()
    def counts_agree(self) -> None:
        assert len(self.buffer) == len(self.owed)
        assert self.buffer.unsent == sum(each not in self.sent for each in self.owed)


TestBuffering = Buffering.TestCase


@given(
    limit=st.integers(4, 60),
    rows=st.lists(st.integers(1, 4), max_size=200),
    take_after=st.integers(1, 50),
)
def test_the_limit_holds_with_samples_in_flight(
    limit: int, rows: list[int], take_after: int
) -> None:
    buffer = SampleBuffer(limit)
    added = 0
    for step, names in enumerate(rows, 1):
        buffer.add(step, 0, [f"m{n}" for n in range(names)], [0.0] * names)
        added += names
        if step % take_after == 0:
            buffer.take(1000, step)
        assert len(buffer) <= limit
        assert len(buffer) + buffer.dropped == added
    buffer.take(100_000, 1_000_000)
    buffer.acknowledged(1_000_000)
    assert (len(buffer), buffer.unsent) == (0, 0)
