"""Every operation of the learning rate, and what comes of it under any scheduler.

What is expected comes from the scheduler's own rates in an untouched run, and a line of arithmetic
for each operation.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.trainer_agent.parameters.runs import EVERY, NAME, RATE, STEPS, Run, own_rates
from trainer_agent.parameters import (
    Change,
    Multiply,
    Ramp,
    Refused,
    Release,
    Schedule,
    Set,
    SetMode,
    Shape,
)
from trainer_agent.parameters.learning_rate import LearningRate

AT = 7
RATES = (RATE, 0.03)
BUILT_AROUND = {"OneCycleLR": 0.2, "CyclicLR": 0.2}
# own rate now, own rate at the change, own rate three steps after it, steps since, in force at it
Expected = Callable[[float, float, float, int, float], float]


def _linear(own: float, at: float, later: float, done: int, share: float) -> float:
    if done < 2:
        return at + (0.06 * share - at) * done / 2
    return 0.06 * share + (0.01 - 0.06) * share * (done - 2) / 8 if done < 10 else 0.01 * share


PEAK = Set(NAME, 0.5, mode=SetMode.PEAK)
# `share` is the group's rate relative to the first group's.
OPERATIONS: dict[str, tuple[Change, Expected]] = {
    "set": (Set(NAME, 0.05), lambda own, at, later, done, share: own * (0.05 * share / at)),
    "hold": (
        Set(NAME, 0.05, mode=SetMode.HOLD),
        lambda own, at, later, done, share: 0.05 * share,
    ),
    "bounded hold": (
        Set(NAME, 0.05, mode=SetMode.HOLD, hold_steps=4),
        lambda own, at, later, done, share: 0.05 * share if done < 4 else own,
    ),
    "multiply": (Multiply(NAME, 0.3), lambda own, at, later, done, share: own * 0.3),
    "ramp": (
        Ramp(NAME, 0.05, 4),
        lambda own, at, later, done, share: (
            at + (0.05 * share - at) * (done + 1) / 4 if done < 4 else own * (0.05 * share / later)
        ),
    ),
    "schedule": (
        Schedule(NAME, Shape.LINEAR, peak=0.06, warmup_steps=2, floor=0.01, steps=10),
        _linear,
    ),
    "release": (Release(NAME), lambda own, at, later, done, share: own),
}


def assert_as_expected(name: str, operation: str) -> None:
    """Run a scheduler with one operation and compare every step's rates."""
    change, expected = OPERATIONS[operation]
    own = own_rates(EVERY[name], rates=RATES)
    run = Run(EVERY[name], RATES, learns=False).until(AT)
    applied = run.apply(change)
    run.until(STEPS)
    assert [list(reading.by_group.values()) for reading in (applied.old, applied.new)] == [
        own[AT],
        run.used[AT],
    ]
    assert run.used[:AT] == own[:AT]
    for n in range(AT, STEPS):
        for group in range(2):
            share = own[AT][group] / own[AT][0]
            want = expected(own[n][group], own[AT][group], own[AT + 3][group], n - AT, share)
            assert run.used[n][group] == pytest.approx(want, rel=1e-12), (n, group)


def assert_peak_as_expected(name: str) -> None:
    """Run a scheduler whose peak is set and compare every step's rates."""
    own = own_rates(EVERY[name], rates=RATES)
    run = Run(EVERY[name], RATES, learns=False).until(AT)
    run.apply(PEAK)
    run.until(STEPS)
    factor = 0.5 / BUILT_AROUND.get(name, RATE)
    for used, rates in zip(run.used[AT:], own[AT:], strict=False):
        assert used == pytest.approx([rate * factor for rate in rates], rel=1e-12)


def late_peak_refused(name: str) -> str | None:
    """Return why peak is refused where a scheduler had moved before it was first seen."""
    run = Run(EVERY[name], steered=False, learns=False).until(AT)
    try:
        LearningRate(run.optimizer, run.scheduler).check(PEAK, run.boundary)
    except Refused as refused:
        return refused.message
    return None
