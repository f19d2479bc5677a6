"""The rules of micro-batches, updates and epochs, against counting them out."""

from __future__ import annotations

import functools
import math

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.optim.lr_scheduler import LambdaLR
from transformers import get_scheduler

from trainer_agent.parameters.data.chunking import (
    Position,
    chunk,
    nearest_multiples,
    opens,
    updates_in,
    updates_left,
    updates_until_open,
)
from trainer_agent.parameters.data.stretch import (
    Stretch,
    depends_on_length,
    follow_stretched,
    original_shape,
)

sizes = st.integers(1, 9)
lengths = st.integers(1, 60)


@given(lengths, st.lists(st.tuples(st.integers(0, 40), sizes), max_size=6), sizes)
def test_every_batch_is_used_once_and_gradients_are_synchronised_where_updates_end(
    length: int, asked: list[tuple[int, int]], accumulation: int
) -> None:
    """Count an epoch out as transformers does, with changes where they may be made."""
    here, pending, chunks = Position(0, 0, length), sorted(asked), []
    while not here.ends_epoch:
        size = chunk(here, accumulation)
        for taken in range(here.consumed + 1, here.consumed + size + 1):
            synchronised = taken % accumulation == 0 or taken == length
            assert synchronised == (taken == here.consumed + size)
        here = Position(0, here.consumed + size, length)
        chunks.append((size, accumulation))
        while pending and pending[0][0] <= len(chunks) and opens(here, pending[0][1]):
            accumulation = pending.pop(0)[1]
    assert chunk(here, accumulation) == 0
    assert sum(size for size, _ in chunks) == length
    assert all(size == full for size, full in chunks[:-1]), "only the last update may be short"


@given(lengths, sizes, sizes, sizes, st.data())
def test_how_long_a_change_waits(
    length: int, current: int, new: int, generation: int, data: st.DataObject
) -> None:
    begun = data.draw(st.integers(0, length // current))
    here = Position(0, begun * current, length)
    waited = 0
    there = here
    while not opens(there, new, generation):
        there = Position(0, there.consumed + chunk(there, current), length)
        waited += 1
    assert updates_until_open(here, current, new, generation) == waited


@given(sizes, sizes, st.integers(0, 30))
def test_without_an_end_a_change_waits_for_the_next_multiple(
    current: int, new: int, begun: int
) -> None:
    here = Position(0, begun * current, None)
    waited = updates_until_open(here, current, new)
    assert (here.consumed + waited * current) % new == 0
    assert waited < new


@given(lengths, sizes, st.floats(0.1, 5))
def test_the_whole_run_is_what_transformers_plans(
    length: int, accumulation: int, epochs: float
) -> None:
    planned = math.ceil(epochs * max(math.ceil(length / accumulation), 1))
    assert updates_left(Position(0, 0, length), epochs, accumulation) == planned


@given(lengths, sizes, st.integers(1, 4), st.data())
def test_what_is_left_of_whole_epochs_is_what_will_run(
    length: int, accumulation: int, epochs: int, data: st.DataObject
) -> None:
    epoch = data.draw(st.integers(0, epochs - 1))
    consumed = data.draw(st.integers(0, (length - 1) // accumulation)) * accumulation
    counted, here = 0, Position(epoch, consumed, length)
    while here.epoch < epochs:
        here = Position(here.epoch, here.consumed + chunk(here, accumulation), length)
        here = here.normalised(length)
        counted += 1
    assert updates_left(Position(epoch, consumed, length), epochs, accumulation) == counted
    assert counted == updates_in(length, accumulation) * (epochs - epoch) - consumed // accumulation


@given(st.integers(1, 100), st.integers(1, 100), sizes, st.data())
def test_a_place_in_an_epoch_of_another_length_is_as_far_into_it(
    length: int, other: int, accumulation: int, data: st.DataObject
) -> None:
    here = Position(2, data.draw(st.integers(0, length)), length)
    there = here.in_epoch_of(other, accumulation)
    assert there.epoch == 2
    assert there.ends_epoch or there.consumed % accumulation == 0
    assert there.consumed / other <= here.consumed / length
    assert there.ends_epoch or (here.consumed / length - there.consumed / other) * other < (
        accumulation + 1
    )


@given(st.integers(1, 1000), st.integers(1, 50))
def test_the_nearest_multiples(value: int, unit: int) -> None:
    nearest = nearest_multiples(value, unit)
    assert all(each % unit == 0 and each > 0 for each in nearest)
    assert all(abs(each - value) <= unit for each in nearest)
    assert unit * math.ceil(value / unit) in [*nearest, value]


@given(
    st.integers(2, 200), st.lists(st.tuples(st.integers(1, 60), st.integers(1, 200)), max_size=5)
)
def test_a_stretched_schedule_moves_on_evenly_from_where_it_is_and_ends_with_the_run(
    planned: int, changes: list[tuple[int, int]]
) -> None:
    stretch, until, at = Stretch(), planned, 0
    for steps, more in changes:
        at = min(at + steps, until - 1)
        where = stretch(at)
        until = at + more
        stretch = stretch.replanned(planned, at, until)
        assert stretch(at) == where
        assert math.isclose(stretch(until), planned, rel_tol=1e-9)
        assert stretch.pace >= 0
        assert Stretch.from_json(stretch.to_json()) == stretch


@given(st.integers(2, 200), st.integers(0, 100))
def test_a_plan_that_stays_is_followed_to_the_bit(planned: int, at: int) -> None:
    at = min(at, planned - 1)
    assert Stretch().replanned(planned, at, planned).nothing


def test_only_schedules_that_were_built_for_a_length_are_stretched() -> None:
    def schedule(kind: str, **kwargs: object) -> object:
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=1.0)
        return get_scheduler(
            kind,
            optimizer,
            num_warmup_steps=2,
            num_training_steps=20,
            scheduler_specific_kwargs=kwargs,
        )

    for kind in ("linear", "cosine", "cosine_with_restarts", "polynomial"):
        assert depends_on_length(schedule(kind)), kind
    assert depends_on_length(schedule("cosine_with_min_lr", min_lr=0.1))
    assert depends_on_length(schedule("warmup_stable_decay", num_decay_steps=4))
    for kind in ("constant", "constant_with_warmup", "inverse_sqrt", "reduce_lr_on_plateau"):
        assert not depends_on_length(schedule(kind)), kind
    assert not depends_on_length(None)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=1.0)
    mine = functools.partial(lambda step, num_training_steps: 1.0, num_training_steps=9)
    assert not depends_on_length(LambdaLR(optimizer, mine))


def test_a_stretch_over_a_schedule_leaves_nothing_in_its_state_and_can_be_taken_away() -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=1.0)
    scheduler: LambdaLR = get_scheduler(
        "linear", optimizer, num_warmup_steps=0, num_training_steps=20
    )
    (shape,) = scheduler.lr_lambdas
    follow_stretched(scheduler, Stretch(10, 10, 0.5))
    follow_stretched(scheduler, Stretch(10, 10, 0.25))
    assert scheduler.lr_lambdas[0](14) == shape(11)
    assert original_shape(scheduler.lr_lambdas[0]) is shape
    assert scheduler.state_dict()["lr_lambdas"] == [None]
    assert depends_on_length(scheduler)
    follow_stretched(scheduler, Stretch())
    assert scheduler.lr_lambdas == [shape]
