"""Any sequence of operations, checkpoints and undos gives the rates of a simple model."""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.trainer_agent.parameters.runs import EVERY, NAME, RATE, Run, own_rates
from trainer_agent.parameters import (
    Boundary,
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

RATES = (RATE, 0.03)
ENDS = 60
Curve = Callable[[int], float]


class Group:
    """One group: what the scheduler gives, a factor, and three layers that may cover it."""

    def __init__(self, own: list[float], base: float) -> None:
        self.own = own
        self.base = base
        self.factor = 1.0
        self.schedule: Curve | None = None
        self.peak = 0.0
        self.ramp: tuple[Curve, int, float] | None = None
        self.hold: tuple[float, float] | None = None

    def below(self, n: int) -> float:
        return (self.schedule(n) if self.schedule else self.own[n]) * self.factor

    def at(self, n: int) -> float:
        if self.hold and n < self.hold[1]:
            return self.hold[0]
        return self.ramp[0](n) if self.ramp else self.below(n)

    def settle(self, n: int) -> None:
        if self.hold and n >= self.hold[1]:
            self.hold = None
        if self.ramp and n >= self.ramp[1]:
            below, target = self.below(n), self.ramp[2]
            if below != 0.0 and target != 0.0:
                self.factor *= target / below
            if (below == 0.0) == (target == 0.0):  # no factor leads to zero, or back from it
                self.ramp = None

    def uncover(self) -> None:
        self.hold = self.ramp = None


class Model:
    """The rates that there should be, from the scheduler's own."""

    def __init__(self, own: list[list[float]], bases: list[float]) -> None:
        columns = [list(column) for column in zip(*own, strict=True)]
        self.groups = [Group(column, base) for column, base in zip(columns, bases, strict=True)]

    def targets(self, change: Change) -> list[Group]:
        return self.groups if change.group is None else [self.groups[int(change.group)]]

    def shares(self, groups: list[Group], n: int, value: float) -> list[float]:
        for now in ([g.at(n) for g in groups], [g.below(n) for g in groups]):
            if now[0] != 0.0:
                return [value * each / now[0] for each in now]
        base = [(g.peak if g.schedule else g.base) * g.factor for g in groups]
        return [value * b / base[0] if base[0] else value for b in base]

    def apply(self, change: Change, n: int) -> bool:
        """Do it; False: it cannot be done."""
        groups = self.targets(change)
        match change:
            case Set(mode=SetMode.DEFAULT, value=value):
                old = groups[0].below(n)
                if old == 0.0:
                    return False
                for group in groups:
                    group.factor *= float(value) / old
                    group.uncover()
            case Set(mode=SetMode.PEAK, value=value):
                first = groups[0]
                old = (first.peak if first.schedule else first.base) * first.factor
                if old == 0.0:  # a group that was held at zero took that share of a new schedule
                    return False
                for group in groups:
                    group.factor *= float(value) / old
                    group.uncover()
            case Set(value=value, hold_steps=steps):
                until = math.inf if steps is None else n + steps
                shares = self.shares(groups, n, float(value))
                for group, share in zip(groups, shares, strict=True):
                    group.hold = (share, until)
            case Multiply(factor=factor):
                for group in groups:
                    self.multiply(group, factor)
            case Ramp(value=value, steps=steps):
                shares = self.shares(groups, n, value)
                for group, share in zip(groups, shares, strict=True):
                    line = functools.partial(self.line, group.at(n), share, n - 1, steps)
                    group.ramp = (line, n + steps - 1, share)
                    group.hold = None
                    group.settle(n)
            case Schedule():
                peak = groups[0].at(n) if change.peak is None else change.peak
                if peak == 0.0 or change.floor > peak:
                    return False
                length = ENDS - n if change.steps is None else change.steps
                for group, share in zip(groups, self.shares(groups, n, peak), strict=True):
                    group.schedule = functools.partial(
                        self.curve, change, length, group.at(n), share, share / peak, n
                    )
                    group.peak, group.factor = share, 1.0
                    group.uncover()
            case Release():
                for group in groups:
                    group.factor, group.schedule = 1.0, None
                    group.uncover()
        return True

    @staticmethod
    def multiply(group: Group, factor: float) -> None:
        group.factor *= factor
        if group.hold:
            group.hold = (group.hold[0] * factor, group.hold[1])
        if group.ramp:
            line, until, target = group.ramp
            group.ramp = (lambda n: line(n) * factor, until, target * factor)

    @staticmethod
    def line(start: float, end: float, begin: int, steps: int, n: int) -> float:
        return start + (end - start) * min(1.0, (n - begin) / steps)

    @classmethod
    def curve(
        cls,
        change: Schedule,
        length: int,
        start: float,
        peak: float,
        share: float,
        begin: int,
        n: int,
    ) -> float:
        done = n - begin
        if done < change.warmup_steps:
            return cls.line(start, peak, begin, change.warmup_steps, n)
        if change.shape is Shape.CONSTANT:
            return peak
        left = 1.0 - min(1.0, (done - change.warmup_steps) / (length - change.warmup_steps))
        if change.shape is Shape.COSINE:
            left = (1.0 + math.cos(math.pi * (1.0 - left))) / 2.0
        return change.floor * share + (peak - change.floor * share) * left


values = st.floats(1e-5, 1.0)
groups = st.sampled_from([None, None, "0", "1"])
changes = st.one_of(
    st.builds(
        Set, st.just(NAME), values, st.sampled_from([SetMode.DEFAULT, SetMode.PEAK]), group=groups
    ),
    st.builds(
        Set,
        st.just(NAME),
        st.one_of(values, st.just(0.0)),
        st.just(SetMode.HOLD),
        st.one_of(st.none(), st.integers(1, 6)),
        groups,
    ),
    st.builds(Multiply, st.just(NAME), st.floats(0.1, 10.0), groups),
    st.builds(Ramp, st.just(NAME), values, st.integers(1, 6), groups),
    st.builds(
        Schedule,
        st.just(NAME),
        st.sampled_from([Shape.LINEAR, Shape.COSINE]),
        st.one_of(st.none(), values),
        st.integers(0, 4),
        st.sampled_from([0.0, 1e-5, 0.01]),
        st.one_of(st.none(), st.integers(5, 12)),
        groups,
    ),
    st.builds(Schedule, st.just(NAME), st.just(Shape.CONSTANT), values, group=groups),
    st.builds(Release, st.just(NAME), groups),
)
actions = st.lists(
    st.one_of(changes, changes, st.integers(1, 4), st.sampled_from(["resume", "undo"])), max_size=12
)
NAMES = [
    "cosine",
    "linear",
    "none",
    "CosineAnnealingLR",
    "SequentialLR",
    "ReduceLROnPlateau",
    "ExponentialLR",
]


@functools.cache
def own(name: str) -> list[list[float]]:
    return own_rates(EVERY[name], ENDS, RATES)


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_any_sequence(name: str, data: Any) -> None:
    def new_run() -> Run:
        return Run(EVERY[name], RATES, learns=False, max_steps=ENDS)

    run, model = new_run(), Model(own(name), list(RATES))

    def agrees() -> None:
        want = [group.at(run.global_step) for group in model.groups]
        assert run.now() == pytest.approx(want, rel=1e-9, abs=1e-15)

    for action in data.draw(actions):
        if isinstance(action, int):
            for _ in range(action):
                run.step()
                for group in model.groups:
                    group.settle(run.global_step)
                agrees()
        elif action == "resume":
            held, now, step = run.checkpoint(), run.now(), run.global_step
            run = new_run().resume(held)
            assert run.now() == now
            assert run.global_step == step
        elif action == "undo":
            state, now = run.lr.state_dict(), run.now()
            with contextlib.suppress(Refused):
                run.lr.undo(run.lr.apply(data.draw(changes), run.boundary))
            assert (run.lr.state_dict(), run.now()) == (state, now)
        elif model.apply(action, run.global_step):
            run.apply(action)
            agrees()
            if isinstance(action, Set) and action.mode is not SetMode.PEAK:
                assert run.now()[int(action.group or 0)] == action.value
        else:
            with pytest.raises(Refused):
                run.apply(action)
            agrees()
    run.lr.apply(Release(NAME), Boundary(run.global_step, ENDS))
    assert run.now() == own(name)[run.global_step]
    run.until(run.global_step + 3)
    assert run.now() == own(name)[run.global_step]


@given(values, values, st.integers(1, 20), st.sampled_from([Shape.LINEAR, Shape.COSINE]))
def test_a_value_set_under_a_schedule_of_ours_is_used_exactly(
    peak: float, value: float, done: int, shape: Shape
) -> None:
    run = Run(EVERY["none"], learns=False, max_steps=ENDS)
    run.apply(Schedule(NAME, shape, peak=peak))
    run.until(done).apply(Set(NAME, value))
    run.step()
    assert run.used[-1] == [value]
