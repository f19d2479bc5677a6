from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import get_cosine_schedule_with_warmup, get_linear_schedule_with_warmup

from trainer_agent.parameters import Shape
from trainer_agent.parameters.schedule_shapes import RampCurve, ScheduleCurve, between, rescaled

rates = st.floats(1e-12, 1e3)
steps = st.integers(1, 1000)


@given(rates, rates, rates)
def test_what_equals_the_old_value_becomes_exactly_the_new_one(
    value: float, old: float, new: float
) -> None:
    assert rescaled(old, old, new) == new
    assert rescaled(value, old, new) == pytest.approx(value * new / old, rel=1e-12)


@given(st.floats(0, 1e3), st.floats(0, 1e3), st.floats(0, 1))
def test_a_point_between_lies_between(start: float, end: float, fraction: float) -> None:
    assert between(start, end, 1.0) == end
    assert between(start, end, 0.0) == start
    slack = 1e-12 * max(start, end)
    assert min(start, end) - slack <= between(start, end, fraction) <= max(start, end) + slack


@given(rates, rates, steps, st.integers(0, 10**6))
def test_a_ramp_moves_at_its_first_step_and_ends_exactly(
    start: float, target: float, length: int, begin: int
) -> None:
    ramp = RampCurve(start, target, begin, length)
    assert ramp.value_at(begin) == pytest.approx(start + (target - start) / length, rel=1e-9)
    assert ramp.value_at(begin + length - 1) == target
    assert ramp.reached(begin + length - 1)
    assert ramp.value_at(begin + length + 5) == target
    assert length == 1 or not ramp.reached(begin + length - 2)


@pytest.mark.parametrize(
    ("shape", "theirs"),
    [
        (Shape.LINEAR, get_linear_schedule_with_warmup),
        (Shape.COSINE, get_cosine_schedule_with_warmup),
    ],
)
@pytest.mark.parametrize("warmup", [0, 1, 7])
def test_steps_are_counted_as_hugging_face_counts_them(
    shape: Shape, theirs: object, warmup: int
) -> None:
    assert callable(theirs)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.3)
    scheduler = theirs(optimizer, num_warmup_steps=warmup, num_training_steps=30)
    ours = ScheduleCurve(shape, 0.0, 0.3, 0.0, warmup, 30, begin=100)
    for done in range(35):
        if done <= 30:  # theirs comes up again after the end of a cosine
            assert ours.value_at(100 + done) == pytest.approx(
                optimizer.param_groups[0]["lr"], rel=1e-12, abs=1e-17
            )
        else:
            assert ours.value_at(100 + done) == 0.0
        optimizer.step()
        scheduler.step()


@given(
    st.sampled_from(Shape), rates, rates, st.floats(0, 1), st.integers(0, 50), st.integers(1, 50)
)
def test_a_schedule_starts_peaks_and_ends_exactly(
    shape: Shape, start: float, peak: float, low: float, warmup: int, decay: int
) -> None:
    floor = 0.0 if shape is Shape.CONSTANT else peak * low
    curve = ScheduleCurve(shape, start, peak, floor, warmup, warmup + decay, begin=3)
    assert curve.value_at(3) == (start if warmup else peak)
    assert curve.value_at(3 + warmup) == peak
    end = peak if shape is Shape.CONSTANT else floor
    assert curve.value_at(3 + warmup + decay) == end
    assert curve.value_at(3 + warmup + decay + 1000) == end
    after = [curve.value_at(3 + warmup + n) for n in range(decay + 1)]
    assert all(b <= a * (1 + 1e-12) for a, b in itertools.pairwise(after))
