"""Numbers about series, against known answers and rules that always hold."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from analytics_service.chat.statistics import (
    WINDOW,
    Ending,
    Point,
    Spike,
    before_after,
    find_spikes,
    summarize,
)
from control_plane.domain.series import Sample, describe, reduce
from midcourse.control.v1 import control_pb2

FINITE = st.floats(allow_nan=False, allow_infinity=False)


def points(values: list[float], first_step: int = 1) -> list[Point]:
    return [Point(first_step + i, value) for i, value in enumerate(values)]


def series(values: list[float], max_points: int = 100_000) -> control_pb2.Series:
    """A series as the control plane answers with it."""
    samples = [Sample(step, value, step) for step, value in points(values)]
    kept, numbers = reduce(samples, max_points), describe(samples)
    made = control_pb2.Series(
        name="loss",
        steps=[each.step for each in kept],
        values=[each.value for each in kept],
        time_micros=[each.time for each in kept],
        reduced=len(kept) < len(samples),
    )
    made.statistics.count = numbers.count
    made.statistics.non_finite_count = numbers.non_finite_count
    for name in ("last", "minimum", "maximum", "mean", "slope"):
        if (value := getattr(numbers, name)) is not None:
            setattr(made.statistics, name, value)
    return made


def wavy(count: int) -> list[float]:
    return [2.0 + 0.05 * math.sin(i) for i in range(count)]


def test_known_answers() -> None:
    summary = summarize(series([4.0, 3.0, math.nan, 1.0, 2.0]))
    assert (summary.count, summary.non_finite_count, summary.first_non_finite_step) == (5, 1, 3)
    assert (summary.first, summary.last) == (Point(1, 4.0), Point(5, 2.0))
    assert (summary.minimum, summary.maximum) == (Point(4, 1.0), Point(1, 4.0))
    assert summary.mean == 2.5
    assert summary.slope == pytest.approx(-0.6)
    assert summary.spikes == ()
    assert summary.exact


def test_nothing_finite_is_unknown_not_zero() -> None:
    summary = summarize(series([math.inf, math.nan]))
    assert summary.minimum is None
    assert summary.maximum is None
    assert (summary.mean, summary.slope) == (None, None)
    assert summary.first == Point(1, math.inf)
    assert summary.first_non_finite_step == 1


def test_a_series_without_samples_is_refused() -> None:
    with pytest.raises(ValueError, match="'loss' has no samples"):
        summarize(control_pb2.Series(name="loss"))


def test_a_spike_has_start_peak_baseline_and_end() -> None:
    values = [*wavy(30), 5.0, 9.84, 7.0, 4.0, *wavy(30)]
    (spike,) = find_spikes(points(values))
    assert (spike.start_step, spike.peak_step, spike.peak_value) == (31, 32, 9.84)
    assert spike.baseline == pytest.approx(2.0, abs=0.05)
    assert (spike.end_step, spike.ending) == (35, Ending.RECOVERED)
    assert spike.is_upward


def test_a_drop_is_found_too_and_an_overshoot_is_a_spike_of_its_own() -> None:
    values = [*wavy(30), 9.0, -5.0, *wavy(10)]
    up, down = find_spikes(points(values))
    assert (up.is_upward, up.start_step, up.end_step) == (True, 31, 32)
    assert (down.is_upward, down.start_step, down.end_step) == (False, 32, 33)


def test_two_spikes_do_not_hide_each_other() -> None:
    values = wavy(30) + [9.0] * 5 + wavy(3) + [20.0] * 5 + wavy(9)
    assert [each.start_step for each in find_spikes(points(values))] == [31, 39]


def test_a_deviation_that_lasts_is_a_new_level() -> None:
    values = wavy(30) + [value + 5 for value in wavy(60)] + [20.0] + [7.0] * 3
    first, second = find_spikes(points(values))
    assert (first.start_step, first.end_step, first.ending) == (31, None, Ending.NEW_LEVEL)
    assert (second.start_step, second.ending) == (91, Ending.RECOVERED)
    assert second.baseline == pytest.approx(7.0, abs=0.05)


def test_a_spike_at_the_end_is_not_said_to_be_over() -> None:
    (spike,) = find_spikes(points([*wavy(30), 8.0, 9.0]))
    assert (spike.end_step, spike.ending) == (None, Ending.ONGOING)


def test_ordinary_training_has_no_spikes() -> None:
    source = random.Random(7)
    falling = [0.5 + 3 * math.exp(-i / 100) + source.gauss(0, 0.05) for i in range(1_000)]
    warm_up = [1e-5 * i for i in range(300)]
    assert find_spikes(points(falling)) == []
    assert find_spikes(points(warm_up)) == []
    assert find_spikes(points([3.0] * 100)) == []


def test_noise_around_zero_has_hardly_any_spikes() -> None:
    source = random.Random(7)
    noise = [source.gauss(0, 1) for _ in range(5_000)]
    assert len(find_spikes(points(noise))) <= 5


def test_a_reduced_series_keeps_its_spike_and_says_that_it_is_not_exact() -> None:
    values = wavy(20_000)
    values[12_345] = 50.0
    summary = summarize(series(values, max_points=4_000))
    assert not summary.exact
    assert summary.count == 20_000
    assert summary.maximum == Point(12_346, 50.0)
    (spike,) = summary.spikes
    assert (spike.start_step, spike.peak_value) == (12_346, 50.0)


def test_before_and_after() -> None:
    compared = before_after(points([1.0, 2.0, 3.0, 10.0, math.nan, 30.0, 99.0]), 4, 3)
    assert (compared.before.count, compared.before.mean, compared.before.median) == (3, 2.0, 2.0)
    assert (compared.after.count, compared.after.mean, compared.after.median) == (2, 20.0, 20.0)
    assert before_after(points([1.0]), 50, 5).before.mean is None
    with pytest.raises(ValueError, match="1 step or more, got 0"):
        before_after([], 1, 0)


@given(st.lists(st.floats(), min_size=1, max_size=200), st.integers(4, 50))
def test_whatever_the_samples_the_numbers_agree_with_them(
    values: list[float], max_points: int
) -> None:
    summary = summarize(series(values, max_points))
    finite = [value for value in values if math.isfinite(value)]
    assert summary.count == len(values)
    assert summary.non_finite_count == len(values) - len(finite)
    if max_points > 4:  # with 4 points there is no room for both extremes and an odd value
        odd = [step for step, value in points(values) if not math.isfinite(value)]
        assert summary.first_non_finite_step == (odd[0] if odd else None)
    assert summary.last.step == len(values)
    for place in (summary.minimum, summary.maximum):
        assert place is None or values[place.step - 1] == place.value
    if summary.exact and finite:
        assert summary.minimum is not None
        assert summary.maximum is not None
        assert (summary.minimum.value, summary.maximum.value) == (min(finite), max(finite))


@given(st.lists(st.one_of(FINITE, st.sampled_from([1.0, 1.1, 9.0, math.nan])), max_size=120))
def test_spikes_are_in_order_apart_and_real(values: list[float]) -> None:
    found = find_spikes(points(values))
    last = 0
    for spike in found:
        assert spike.start_step >= last
        assert spike.start_step <= spike.peak_step
        assert spike.peak_value == values[spike.peak_step - 1]
        assert spike.baseline in values[: spike.start_step - 1]
        assert spike.size > 0
        assert (spike.end_step is not None) == (spike.ending is Ending.RECOVERED)
        last = spike.peak_step if spike.end_step is None else spike.end_step
        assert last >= spike.peak_step
    assert all(each.ending is not Ending.ONGOING for each in found[:-1])


@given(
    before=st.integers(10, 60),
    height=st.floats(2, 1e6),
    length=st.integers(1, WINDOW - 1),
    scale=st.floats(1e-6, 1e6),
)
def test_a_planted_spike_is_found_wherever_and_however_large(
    before: int, height: float, length: int, scale: float
) -> None:
    level = [scale * value for value in wavy(before)]
    values = level + [scale * (2 + height)] * length + level
    (spike,) = find_spikes(points(values))
    assert (spike.start_step, spike.end_step) == (before + 1, before + length + 1)


@given(st.lists(FINITE, min_size=1, max_size=50), st.integers(0, 60), st.integers(1, 60))
def test_before_and_after_lie_within_their_samples(
    values: list[float], step: int, window: int
) -> None:
    compared = before_after(points(values), step, window)
    before = [v for s, v in points(values) if step - window <= s < step]
    after = [v for s, v in points(values) if step <= s < step + window]
    for stretch, of in ((compared.before, before), (compared.after, after)):
        assert stretch.count == len(of)
        if of:
            assert stretch.mean is not None
            assert stretch.median is not None
            slack = 1e-9 * max(map(abs, of)) + 1e-300
            for number in (stretch.mean, stretch.median):
                assert min(of) - slack <= number <= max(of) + slack


def test_size_and_direction() -> None:
    down = Spike(1, 2, 1.0, 4.0, None, Ending.ONGOING)
    assert (down.size, down.is_upward) == (3.0, False)
