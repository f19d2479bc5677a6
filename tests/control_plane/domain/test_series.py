"""Statistics, reduction and lineage of series, each against a second way of finding it."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from control_plane.domain.series import Sample, describe, lineage, reduce
from control_plane.domain.session import Run

any_value = st.floats() | st.sampled_from([math.nan, math.inf, -math.inf])
plain = st.floats(-1e6, 1e6, allow_subnormal=False)


def series(values: list[float]) -> list[Sample]:
    return [Sample(step, value, 1000 * step) for step, value in enumerate(values, 1)]


@given(st.lists(plain, max_size=120), st.integers(4, 60))
@settings(max_examples=80, deadline=None)
def test_a_reduction_keeps_the_ends_and_the_extremes(values: list[float], points: int) -> None:
    samples = series(values)
    kept = reduce(samples, points)
    assert len(kept) <= points
    assert set(kept) <= set(samples)
    assert [s.step for s in kept] == sorted({s.step for s in kept})
    if len(samples) <= points:
        assert kept == samples
    if samples:
        assert (kept[0], kept[-1]) == (samples[0], samples[-1])
        assert min(s.value for s in kept) == min(values)
        assert max(s.value for s in kept) == max(values)


@given(
    st.lists(plain, min_size=30, max_size=80),
    st.data(),
    st.integers(5, 29),
)
@settings(max_examples=60, deadline=None)
def test_neither_spikes_nor_what_is_no_number_is_reduced_away(
    values: list[float], data: st.DataObject, points: int
) -> None:
    odd = data.draw(
        st.dictionaries(
            st.integers(0, len(values) - 1),
            st.sampled_from([math.nan, math.inf, -math.inf]),
            max_size=6,
        )
    )
    for index, value in odd.items():
        values[index] = value
    kept = reduce(series(values), points)
    assert len(kept) <= points
    finite = [v for v in values if math.isfinite(v)]
    kept_finite = [s.value for s in kept if math.isfinite(s.value)]
    assert min(kept_finite) == min(finite)
    assert max(kept_finite) == max(finite)
    assert any(not math.isfinite(s.value) for s in kept) == bool(odd)


@pytest.mark.parametrize("points", [4, 5])
def test_few_points_show_a_nan_before_a_dip(points: int) -> None:
    values = [1.0] * 50
    values[20], values[21], values[22] = math.nan, 9.0, -9.0
    kept = reduce(series(values), points)
    assert len(kept) <= points
    assert [s.step for s in kept if math.isnan(s.value)] == [21]
    assert 9.0 in [s.value for s in kept]


@given(st.lists(any_value, max_size=60), st.integers(4, 20))
@settings(max_examples=200)
def test_any_series_is_reduced(values: list[float], points: int) -> None:
    kept = reduce(series(values), points)
    assert len(kept) == len(values) if len(values) <= points else 2 <= len(kept) <= points


@given(st.lists(plain | st.sampled_from([math.nan, math.inf, -math.inf]), max_size=80))
@settings(max_examples=200, deadline=None)
def test_statistics_are_numpys(values: list[float]) -> None:
    samples = [Sample(3 * i + 1, v, i) for i, v in enumerate(values)]
    stats = describe(samples)
    finite = [(s.step, s.value) for s in samples if math.isfinite(s.value)]
    assert stats.count == len(values)
    assert stats.non_finite_count == len(values) - len(finite)
    if not finite:
        assert (stats.last, stats.minimum, stats.maximum, stats.mean, stats.slope) == (None,) * 5
        return
    steps, numbers = np.array(finite, dtype=float).T
    assert (stats.last, stats.minimum, stats.maximum) == (
        numbers[-1],
        numbers.min(),
        numbers.max(),
    )
    assert stats.mean == pytest.approx(numbers.mean(), rel=1e-9, abs=1e-6)
    if len(finite) == 1:
        assert stats.slope is None
    else:
        scale = float(np.abs(numbers).max()) or 1.0
        expected = np.polyfit(steps - steps.mean(), numbers, 1)[0]
        assert stats.slope == pytest.approx(expected, rel=1e-6, abs=1e-9 * scale)


@given(st.lists(any_value, max_size=30))
@example([1.7e308, -1.7e308, 1.7e308])
@example([1e308] * 20)
@example([5e-324, 1e308])
@settings(max_examples=300)
def test_no_value_is_too_large_for_statistics(values: list[float]) -> None:
    stats = describe(series(values))
    for number in (stats.last, stats.minimum, stats.maximum, stats.mean):
        assert number is None or math.isfinite(number)
    if stats.slope is not None:
        assert not math.isnan(stats.slope)


def test_the_mean_of_the_largest_numbers_is_one_of_them() -> None:
    largest = 1.7976931348623157e308
    for count in range(1, 20):
        assert describe(series([largest] * count)).mean == largest


def test_samples_at_one_step_have_no_slope() -> None:
    assert describe([Sample(5, 1.0, 1), Sample(5, 2.0, 2)]).slope is None


def _course(starts: list[int], reached: list[int]) -> dict[int, int]:
    """Which run tells of each step, by playing the runs one after the other."""
    told: dict[int, int] = {}
    for number, (start, end) in enumerate(zip(starts, reached, strict=True), 1):
        told = {step: run for step, run in told.items() if step <= start}
        for step in range(start + 1, end + 1):
            told[step] = number
    return told


@given(st.lists(st.tuples(st.integers(0, 12), st.integers(0, 12)), max_size=6))
@settings(max_examples=400)
def test_the_lineage_is_what_playing_the_runs_leaves(runs: list[tuple[int, int]]) -> None:
    starts = [start for start, _ in runs]
    reached = [start + length for start, length in runs]
    numbered = [Run(n, f"i{n}", start) for n, start in enumerate(starts, 1)]
    spans = lineage(numbered)
    assert lineage(list(reversed(numbered))) == spans
    found: dict[int, int] = {}
    for run, first, last in spans:
        end = reached[run - 1] if last is None else min(last, reached[run - 1])
        for step in range(max(first, starts[run - 1] + 1), end + 1):
            assert step not in found, "spans overlap"
            found[step] = run
    assert found == _course(starts, reached)
    assert [first for _, first, _ in spans] == sorted(first for _, first, _ in spans)
    assert [last for _, _, last in spans][-1:] in ([], [None])


def test_what_was_measured_before_the_first_step_is_told() -> None:
    """An evaluation before training stands at the step that its run began at."""
    assert lineage([Run(1, "a", 0)]) == [(1, 0, None)]
    assert lineage([Run(1, "a", 0), Run(2, "b", 100)]) == [(1, 0, 100), (2, 101, None)]
    assert lineage([Run(1, "a", 0), Run(2, "b", 0)]) == [(2, 0, None)]
