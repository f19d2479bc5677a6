"""Times of steady seconds: the same at every look, until somebody sets the clock."""

from __future__ import annotations

from datetime import timedelta

from control_plane.services.steady_time import SteadyTime
from tests.support.domain_values import NOW
from tests.support.use_cases import Clock


def test_it_does_not_tremble_with_the_looks() -> None:
    clock = Clock()
    times = SteadyTime(clock, clock.steady)
    zero = times.zero()
    assert zero + timedelta(seconds=clock.steady()) == NOW
    for late in (1e-6, 3e-5, -2e-6, 0.02):
        clock.advance(10)
        clock.set(late)
        assert times.zero() == zero


def test_it_follows_a_clock_that_is_set() -> None:
    clock = Clock()
    times = SteadyTime(clock, clock.steady)
    zero = times.zero()
    for jump in (3600.0, -7200.0, 0.2):
        clock.set(jump)
        zero += timedelta(seconds=jump)
        assert times.zero() == zero
