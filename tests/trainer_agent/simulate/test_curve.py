from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from trainer_agent.simulate.curve import BEST_RATE, CRITICAL_RATE, LossCurve

RATES = st.floats(0.0, 1.0)


@given(
    seed=st.integers(),
    changes=st.lists(st.tuples(st.integers(0, 2_000), RATES), max_size=5),
    asked=st.lists(st.integers(0, 10_000)),
)
def test_it_depends_on_changes_alone_and_is_always_a_number(
    seed: int, changes: list[tuple[int, float]], asked: list[int]
) -> None:
    looked, unseen = LossCurve(seed, 1e-3), LossCurve(seed, 1e-3)
    at = 0
    for steps, rate in changes:
        for step in asked:
            assert math.isfinite(looked.loss(at + step))
        at += steps
        looked.change(at, rate)
        unseen.change(at, rate)
    assert looked.loss(at + 7) == unseen.loss(at + 7)
    assert looked.loss(at) > 0


@given(seed=st.integers())
def test_it_falls_climbs_and_recovers(seed: int) -> None:
    curve = LossCurve(seed, BEST_RATE)
    assert curve.eval_loss(400) < curve.eval_loss(50) < curve.eval_loss(0)
    fallen = curve.eval_loss(400)
    curve.change(400, CRITICAL_RATE * 3)
    assert curve.eval_loss(600) > fallen + 1
    curve.change(600, BEST_RATE)
    assert curve.eval_loss(1_200) < fallen


def test_a_rate_of_nought_teaches_nothing() -> None:
    curve = LossCurve(1, 0.0)
    assert curve.eval_loss(1_000) == curve.eval_loss(0)
