"""What the soak calls growth."""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import AsyncIterator, Iterable, Mapping
from typing import Any, cast

import grpc
import pytest

from control_plane.client import ConflictError, FailedPreconditionError
from tests.soak.judging import DAY, Verdict, trend
from tests.soak.load import Load
from tests.soak.measuring import Courses
from tests.soak.report import BOUNDS, BY_DESIGN, ON_POSTGRES, check_measured, judge

SECONDS = [float(second) for second in range(0, 3_600, 5)]


def noise(seed: int, size: float) -> list[float]:
    draw = random.Random(seed)
    return [draw.gauss(0.0, size) for _ in SECONDS]


def test_a_leak_is_found_in_noise() -> None:
    # 100 a day, with noise as large as what a quarter of an hour adds.
    values = [50 + at * 100 / DAY + more for at, more in zip(SECONDS, noise(1, 1.0), strict=True)]
    found = trend(SECONDS, values)
    assert found is not None
    assert found.low < 100 < found.high
    assert found.against(20) is Verdict.GROWS
    assert found.against(200) is Verdict.BOUNDED


def test_what_has_filled_up_in_the_first_half_is_bounded() -> None:
    values = [100 * (1 - math.exp(-at / 200)) for at in SECONDS]
    found = trend(SECONDS, values)
    assert found is not None
    assert found.against(2.0) is Verdict.BOUNDED


def test_what_goes_up_and_down_is_bounded() -> None:
    values = [1_000 + 200 * (at % 60) / 60 for at in SECONDS]
    found = trend(SECONDS, values)
    assert found is not None
    assert found.against(100) is not Verdict.GROWS
    assert found.against(5_000) is Verdict.BOUNDED


def test_a_short_run_can_not_tell() -> None:
    seconds = SECONDS[:60]
    found = trend(seconds, [100 + more for more in noise(2, 1.0)[:60]])
    assert found is not None
    assert found.against(10) is Verdict.UNCLEAR


def test_one_outlier_does_not_matter() -> None:
    values = [10.0] * len(SECONDS)
    values[-1] = 1e9
    found = trend(SECONDS, values)
    assert found is not None
    assert found.slope == found.high == 0.0


def _flat(names: Iterable[str]) -> Courses:
    courses = Courses()
    for second in SECONDS[:10]:
        courses.add(second, {(name, ""): 1.0 for name in names})
    return courses


@pytest.mark.parametrize(("postgres", "bounds"), [(False, BOUNDS), (True, ON_POSTGRES)])
def test_what_has_a_bound_is_measured(*, postgres: bool, bounds: Mapping[str, float]) -> None:
    judged = judge(_flat([*bounds, *BY_DESIGN]), postgres=postgres)
    assert {each.name: each.bound for each in judged if each.bound is not None} == bounds
    check_measured(_flat(bounds), postgres=postgres)
    with pytest.raises(ValueError, match="'control plane: table samples'"):
        check_measured(_flat(bounds.keys() - {"control plane: table samples"}), postgres=postgres)


async def test_what_is_refused_is_not_done() -> None:
    class Refusing:
        async def label_job(self, *_: object) -> None:
            raise FailedPreconditionError("nobody may", code=grpc.StatusCode.FAILED_PRECONDITION)

    load = Load(cast("Any", None), jobs=1, rate=1.0, seed=0)
    load._plane = cast("Any", Refusing())
    load._live = {"a"}
    for _ in range(10):
        await load._once("label", load._label)
    assert not load.all_errors()
    await load._once("label", load._label)
    assert load.all_errors() == {"label: 11 refused, 0 done": 11}
    assert not load.done


async def test_what_may_be_refused_is_compared_with_what_is_done_of_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Lucky:
        """Deletes jobs at the second try, and cuts a watch after an event, again and again."""

        tries = 0

        async def delete_job(self, _: str) -> None:
            self.tries += 1
            if self.tries % 2:
                raise ConflictError("again", code=grpc.StatusCode.ABORTED)

        async def watch_jobs(self, **_: object) -> AsyncIterator[None]:
            self.tries += 1
            if self.tries > 100:
                raise asyncio.CancelledError
            yield None
            raise ConflictError("again", code=grpc.StatusCode.ABORTED)

    async def at_once(_: float) -> None:
        pass

    load = Load(cast("Any", None), jobs=1, rate=1.0, seed=0)
    load._plane = cast("Any", Lucky())
    with monkeypatch.context() as patched:
        patched.setattr(asyncio, "sleep", at_once)
        for _ in range(20):
            await load._delete("a")
    with pytest.raises(asyncio.CancelledError):
        await load._stay(None)
    assert not load.all_errors()
    assert load.refused == load.done == {"jobs deleted": 20, "events of watches that stay": 60}


def test_nothing_is_said_of_nothing() -> None:
    assert trend([], []) is None
    assert trend([1.0], [2.0]) is None
    assert trend([1.0, 2.0], [2.0, 2.0]) is None
