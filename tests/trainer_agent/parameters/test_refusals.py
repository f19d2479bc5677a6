"""What cannot be is refused with the reason and the way out, and changes nothing."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from tests.trainer_agent.parameters.runs import EVERY, NAME, RATE, STEPS, Run, assert_same
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

HUGE: Any = 10**400

REFUSED: list[tuple[Change, str, str]] = [
    (Set("weight_decay", 0.1), "UNKNOWN_PARAMETER", "not 'weight_decay'"),
    (Set(NAME, math.nan), "INVALID_VALUE", "value must be finite, got nan"),
    (Set(NAME, math.inf, mode=SetMode.HOLD), "INVALID_VALUE", "finite, got inf"),
    (Set(NAME, HUGE), "INVALID_VALUE", "finite"),
    (Set(NAME, -0.1), "INVALID_VALUE", "not be negative, got -0.1"),
    (Set(NAME, 0.0), "INVALID_VALUE", "for a value of 0 use mode hold"),
    (Set(NAME, 0.0, mode=SetMode.PEAK), "INVALID_VALUE", "use mode hold"),
    (Set(NAME, "0.1"), "INVALID_TYPE", "must be a number, got '0.1'"),
    (Set(NAME, True), "INVALID_TYPE", "must be a number, got True"),
    (Set(NAME, 0.1, hold_steps=3), "INVALID_STEPS", "belongs to mode hold"),
    (Set(NAME, 0.1, mode=SetMode.HOLD, hold_steps=0), "INVALID_STEPS", "at least 1"),
    (Set(NAME, 0.1, mode=SetMode.HOLD, hold_steps=2**54), "INVALID_STEPS", "at most"),
    (Set(NAME, 0.1, group="2"), "UNKNOWN_GROUP", "there are: 0, 1"),
    (Set(NAME, 0.1, group="-1"), "UNKNOWN_GROUP", "there are: 0, 1"),
    (Set(NAME, 0.1, group="²"), "UNKNOWN_GROUP", "there are: 0, 1"),
    (Set(NAME, 0.1, group=""), "UNKNOWN_GROUP", "there are: 0, 1"),
    (Multiply(NAME, 0.0), "INVALID_VALUE", "factor must be greater than 0"),
    (Multiply(NAME, -2.0), "INVALID_VALUE", "not be negative"),
    (Multiply(NAME, 1e-323), "NOT_REPRESENTABLE", "stored as 0.0"),
    (Ramp(NAME, 0.0, 4), "INVALID_VALUE", "linear schedule with floor 0"),
    (Ramp(NAME, 0.1, 0), "INVALID_STEPS", "steps must be at least 1"),
    (Ramp(NAME, 0.1, 2.5), "INVALID_TYPE", "whole number, got 2.5"),  # type: ignore[arg-type]
    (Ramp(NAME, 0.1, True), "INVALID_TYPE", "whole number, got True"),
    (Schedule(NAME, Shape.LINEAR, peak=0.0), "INVALID_VALUE", "peak must be greater than 0"),
    (Schedule(NAME, Shape.LINEAR, warmup_steps=-1), "INVALID_STEPS", "at least 0"),
    (Schedule(NAME, Shape.LINEAR, warmup_steps=13), "INVALID_STEPS", "less than the schedule's 13"),
    (Schedule(NAME, Shape.LINEAR, floor=1.0), "INVALID_VALUE", "at most the peak"),
    (Schedule(NAME, Shape.CONSTANT, floor=0.01), "INVALID_VALUE", "no floor"),
    (Release(NAME, group="x"), "UNKNOWN_GROUP", "'x'"),
]


@pytest.mark.parametrize(("change", "reason", "words"), REFUSED)
@pytest.mark.parametrize("name", ["cosine", "CosineAnnealingLR"])
def test_refused_and_nothing_changed(name: str, change: Change, reason: str, words: str) -> None:
    rates = (RATE, RATE / 4)
    run = Run(EVERY[name], rates).until(7)
    for method in (run.lr.check, run.lr.apply):
        with pytest.raises(Refused) as refused:
            method(change, run.boundary)
        assert refused.value.reason == reason
        assert words in refused.value.message
        known = None if reason == "UNKNOWN_PARAMETER" else run.now()[0]
        assert refused.value.value_in_force == known
    assert_same(run.until(STEPS), Run(EVERY[name], rates, steered=False).until(STEPS))


def _at_zero() -> Run:
    return Run(EVERY["linear"]).until(22)  # its last step leaves it at zero


def test_set_at_zero_is_refused_with_the_way_out_and_the_way_out_works() -> None:
    run = _at_zero()
    assert run.now() == [0.0]
    with pytest.raises(Refused, match="use mode hold") as refused:
        run.apply(Set(NAME, 0.05))
    assert (refused.value.reason, refused.value.value_in_force) == ("NO_SCALE_FACTOR", 0.0)
    with pytest.raises(Refused, match="which peak"):
        run.apply(Schedule(NAME, Shape.COSINE, steps=4))
    for change in (
        Set(NAME, 0.05, mode=SetMode.HOLD),
        Ramp(NAME, 0.05, 1),
        Schedule(NAME, Shape.COSINE, peak=0.05, steps=4),
    ):
        other = _at_zero()
        other.apply(change)
        assert other.now() == [0.05]
        other.until(24)
    run.apply(Set(NAME, 0.05, mode=SetMode.PEAK))
    assert (run.now(), run.torch_scheduler.base_lrs) == ([0.0], [0.05])


def test_a_ramp_that_ends_where_the_schedule_is_at_zero_stays_at_its_target() -> None:
    run = Run(EVERY["linear"]).until(20)
    run.apply(Ramp(NAME, 0.05, 4))
    run.until(28)
    assert [used[0] for used in run.used[23:]] == [0.05] * 5
    run.apply(Release(NAME))
    assert run.now() == [0.0]


def test_a_schedule_over_the_rest_of_the_run_needs_to_know_how_long_that_is() -> None:
    run = Run(EVERY["cosine"], max_steps=None).until(7)
    with pytest.raises(Refused, match="say how many steps") as refused:
        run.apply(Schedule(NAME, Shape.LINEAR))
    assert refused.value.reason == "UNKNOWN_RUN_LENGTH"
    run.apply(Schedule(NAME, Shape.LINEAR, steps=5))
    ended = Run(EVERY["cosine"], max_steps=7).until(7)
    with pytest.raises(Refused) as refused:
        ended.apply(Schedule(NAME, Shape.LINEAR))
    assert refused.value.reason == "NO_STEPS_REMAIN"


def test_what_cannot_be_stored_is_refused() -> None:
    run = Run(EVERY["cosine"], (RATE, RATE / 4)).until(7)
    with pytest.raises(Refused, match=r"group 1 would become 0\.0") as refused:
        run.lr.apply(Set(NAME, 5e-324), run.boundary)
    assert refused.value.reason == "NOT_REPRESENTABLE"
    run.lr.apply(Multiply(NAME, 1e5), run.boundary)
    with pytest.raises(Refused, match="stored as inf") as refused:
        run.lr.apply(Multiply(NAME, 1e308), run.boundary)
    assert refused.value.value_in_force == run.now()[0]


def test_what_a_tensor_cannot_store_is_refused() -> None:
    run = Run(EVERY["cosine"], (torch.tensor(0.1),), options={"foreach": False}).until(7)
    for mode in SetMode:
        for value, stored in ((1e39, "inf"), (1e-60, "0.0")):
            with pytest.raises(Refused, match=f"stored as {stored}"):
                run.lr.apply(Set(NAME, value, mode=mode), run.boundary)
