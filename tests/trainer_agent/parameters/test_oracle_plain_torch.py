"""A live change is, to the bit, what a plain torch script does that makes it at the same step."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest

from tests.trainer_agent.parameters.runs import (
    EVERY,
    HUGGING_FACE,
    NAME,
    RATE,
    STEPS,
    TORCH,
    Run,
    assert_same,
)
from trainer_agent.parameters import Change, Multiply, Ramp, Release, Schedule, Set, SetMode, Shape

AT = 7
RATES = (RATE, 0.03)
LAMBDAS = {
    "LambdaLR": TORCH["LambdaLR"],
    **{
        name: build
        for name, build in HUGGING_FACE.items()
        if name not in {"reduce_lr_on_plateau", "greedy"}
    },
}
Write = Callable[[Run, int], None]


def scale(run: Run, factor: float) -> None:
    """Scale a LambdaLR schedule with torch alone."""
    for index, group in enumerate(run.groups):
        run.torch_scheduler.base_lrs[index] *= factor
        group["initial_lr"] *= factor
        group["lr"] *= factor
    run.torch_scheduler._last_lr = run.now()


def rescale(run: Run, new: list[float]) -> None:
    """Scale a LambdaLR schedule with torch alone so that the next step uses these rates."""
    for index, group in enumerate(run.groups):
        base, old = run.torch_scheduler.base_lrs[index], group["lr"]
        # At the schedule's base value the new base value needs no arithmetic.
        base = new[index] if base == old else base * (new[index] / old)
        run.torch_scheduler.base_lrs[index] = group["initial_lr"] = base
        group["lr"] = new[index]
    run.torch_scheduler._last_lr = run.now()


def write(run: Run, first: float, second: float) -> None:
    run.groups[0]["lr"] = first
    run.groups[1]["lr"] = second
    run.torch_scheduler._last_lr = run.now()


def plain(name: str, changes: Callable[[Run], None]) -> Run:
    run = Run(LAMBDAS[name], RATES, steered=False)
    changes(run)
    while run.global_step < STEPS:
        run.step()
        changes(run)
    return run


def steered(name: str, changes: dict[int, Change]) -> Run:
    run = Run(LAMBDAS[name], RATES)
    for at in sorted(changes):
        run.until(at).apply(changes[at])
    return run.until(STEPS)


@pytest.mark.parametrize("name", LAMBDAS)
def test_set(name: str) -> None:
    def script(run: Run) -> None:
        if run.global_step == AT:
            rescale(run, [0.05, run.groups[1]["lr"] * (0.05 / run.groups[0]["lr"])])

    one = steered(name, {AT: Set(NAME, 0.05)})
    assert_same(one, plain(name, script))
    assert one.used[AT][0] == 0.05
    assert one.torch_scheduler.get_last_lr() == one.now()


@pytest.mark.parametrize("name", LAMBDAS)
def test_multiply(name: str) -> None:
    def script(run: Run) -> None:
        if run.global_step == AT:
            scale(run, 0.3)

    assert_same(steered(name, {AT: Multiply(NAME, 0.3)}), plain(name, script))


@pytest.mark.parametrize("name", LAMBDAS)
def test_peak(name: str) -> None:
    def script(run: Run) -> None:
        if run.global_step == AT:
            scheduler = run.torch_scheduler
            for index, base in enumerate([0.25, 0.03 * (0.25 / RATE)]):
                scheduler.base_lrs[index] = base
                run.groups[index]["initial_lr"] = base
                run.groups[index]["lr"] = base * scheduler.lr_lambdas[index](AT)
            scheduler._last_lr = run.now()

    one = steered(name, {AT: Set(NAME, 0.25, mode=SetMode.PEAK)})
    assert_same(one, plain(name, script))
    assert one.torch_scheduler.get_last_lr() == one.now()


def test_peak_is_a_run_that_was_started_with_it() -> None:
    started = Run(LAMBDAS["cosine"], (0.25,), steered=False).until(STEPS)
    raised = Run(LAMBDAS["cosine"], (RATE,)).until(AT)
    raised.apply(Set(NAME, 0.25, mode=SetMode.PEAK))
    raised.until(STEPS)
    assert raised.used[AT:] == started.used[AT:]


@pytest.mark.parametrize("name", LAMBDAS)
@pytest.mark.parametrize("steps", [None, 1, 5])
def test_hold(name: str, steps: int | None) -> None:
    until = STEPS + 1 if steps is None else AT + steps
    ratio: list[float] = []

    def script(run: Run) -> None:
        if run.global_step == AT:
            ratio.append(0.05 / run.groups[0]["lr"] * run.groups[1]["lr"])
        if AT <= run.global_step < until:
            old = run.now()
            write(run, 0.05, old[1] * (0.05 / old[0]) if run.global_step == AT else ratio[-1])
            ratio.append(run.groups[1]["lr"])

    change = Set(NAME, 0.05, mode=SetMode.HOLD, hold_steps=steps)
    one, other = steered(name, {AT: change}), plain(name, script)
    assert_same(one, other)
    assert [used[0] for used in one.used[AT : min(until, STEPS)]] == [0.05] * (
        min(until, STEPS) - AT
    )


@pytest.mark.parametrize("name", LAMBDAS)
def test_ramp_then_as_set(name: str) -> None:
    steps = 4
    start: list[float] = []

    def script(run: Run) -> None:
        done = run.global_step - AT
        if done == 0:
            start.extend(run.now())
        if 0 <= done < steps:
            target = [0.05, start[1] * (0.05 / start[0])]
            fraction = (done + 1) / steps
            now = [a + (b - a) * fraction for a, b in zip(start, target, strict=True)]
            if done + 1 < steps:
                write(run, *now)
                return
            # Back to where the schedule is by itself, and from there to the target.
            write(
                run,
                *(
                    base * shape(run.global_step)
                    for base, shape in zip(
                        run.torch_scheduler.base_lrs, run.torch_scheduler.lr_lambdas, strict=True
                    )
                ),
            )
            rescale(run, target)

    one, other = steered(name, {AT: Ramp(NAME, 0.05, steps)}), plain(name, script)
    assert_same(one, other)
    assert one.used[AT + steps - 1][0] == 0.05


@pytest.mark.parametrize("name", LAMBDAS)
@pytest.mark.parametrize("shape", list(Shape))
def test_schedule(name: str, shape: Shape) -> None:
    start: list[float] = []
    warmup, total = 3, STEPS - AT
    floor = 0.0 if shape is Shape.CONSTANT else 0.01

    def curve(at: float, peak: float, low: float, done: int) -> float:
        if done < warmup:
            return at + (peak - at) * (done / warmup)
        fraction = (done - warmup) / (total - warmup)
        if fraction >= 1.0 and shape is not Shape.CONSTANT:
            return low
        if shape is Shape.LINEAR:
            return peak + (low - peak) * fraction
        if shape is Shape.COSINE:
            return peak + (low - peak) * (0.5 * (1.0 - math.cos(math.pi * fraction)))
        return peak

    def script(run: Run) -> None:
        done = run.global_step - AT
        if done == 0:
            start.extend(run.now())
        if done >= 0:
            peaks = [0.08, start[1] * (0.08 / start[0])]
            lows = [floor, floor * (peaks[1] / peaks[0])]
            write(run, *(curve(a, p, f, done) for a, p, f in zip(start, peaks, lows, strict=True)))

    change = Schedule(NAME, shape, peak=0.08, warmup_steps=warmup, floor=floor)
    assert_same(steered(name, {AT: change}), plain(name, script))


@pytest.mark.parametrize("name", LAMBDAS)
@pytest.mark.parametrize(
    "change",
    [
        Set(NAME, 0.05),
        Set(NAME, 0.05, mode=SetMode.PEAK),
        Set(NAME, 0.05, mode=SetMode.HOLD),
        Multiply(NAME, 0.3),
        Ramp(NAME, 0.05, 3),
        Ramp(NAME, 0.05, 10),
        Schedule(NAME, Shape.COSINE),
    ],
)
def test_release(name: str, change: Change) -> None:
    untouched = Run(LAMBDAS[name], RATES, steered=False).until(STEPS)
    run = steered(name, {AT: change, AT + 4: Release(NAME)})
    assert run.used[AT + 4 :] == untouched.used[AT + 4 :]
    assert run.torch_scheduler.base_lrs == untouched.torch_scheduler.base_lrs
    assert [g["initial_lr"] for g in run.groups] == [g["initial_lr"] for g in untouched.groups]
    assert type(run.torch_scheduler) is type(untouched.torch_scheduler)
    assert run.torch_scheduler.state_dict().keys() == untouched.torch_scheduler.state_dict().keys()


@pytest.mark.parametrize("name", EVERY)
def test_without_a_change_nothing_is_touched(name: str) -> None:
    watched, alone = (Run(EVERY[name], RATES, steered=steered) for steered in (True, False))
    assert_same(watched.until(STEPS), alone.until(STEPS))
    assert type(watched.torch_scheduler) is type(alone.torch_scheduler)
    if alone.torch_scheduler is not None:
        assert str(watched.torch_scheduler.state_dict()) == str(alone.torch_scheduler.state_dict())
