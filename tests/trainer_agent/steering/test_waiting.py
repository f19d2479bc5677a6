"""Updates that are due and wait for a boundary of their parameters: what ends the wait early."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import pytest

from midcourse.control.v1 import update_pb2
from midcourse.link.v1 import link_pb2
from tests.support.plain_loop import START_RATE, PlainLoop
from tests.support.scripted_link import multiply_change, ramp_change, set_change
from trainer_agent.parameters import EVERY_GROUP, Boundary, Change, GuardRails, Value
from trainer_agent.parameters.value import ValueParameter, Values
from trainer_agent.steering.actions import ActionKind, Actions
from trainer_agent.steering.protection import Protection


class Level(ValueParameter):
    """A plain value that can be changed when it is told so."""

    name = "level"
    description = "Changes at times."
    maximum = 10.0

    def __init__(self) -> None:
        super().__init__()
        self.value: Value = 1.0
        self.open = False

    def get(self) -> Values:
        return {EVERY_GROUP: self.value}

    def put(self, values: Mapping[str, Value]) -> None:
        (self.value,) = values.values()

    def opens(self, change: Change, boundary: Boundary) -> bool:
        return self.open


LEVEL = set_change(2.0, parameter="level")


def waiting(*changes: update_pb2.Change, **options: Any) -> tuple[PlainLoop, Level]:
    """Return a loop in which an update of these changes and the level is due and waits."""
    level = Level()
    actions = Actions({ActionKind.PAUSE: None})
    loop = PlainLoop(extra={"level": level}, actions=actions, **options)
    loop.deliver(1, LEVEL, *changes)
    loop.step()
    return loop, level


def alarmed(loop: PlainLoop) -> None:
    """Go one step on, whose loss is not finite."""
    loop.controller.alarm(link_pb2.LossAlarm(step=loop.global_step + 1, loss=math.nan))
    loop.step()
    assert loop.controller.actions.paused


def test_it_does_not_go_over_what_the_run_has_done_by_itself() -> None:
    loop, level = waiting(set_change(0.4), protection=Protection())
    assert not loop.outcomes
    loop.deliver(2, set_change(3.0, parameter="level"))
    loop.deliver(3, set_change(0.3), at_step=50)
    alarmed(loop)
    assert loop.rate == START_RATE / 2
    rejected = loop.outcome(1).rejected
    assert (rejected.reason, rejected.parameter) == ("SUPERSEDED", "learning_rate")
    assert "guard" in rejected.message
    assert loop.held() == [2, 3], "what has another level or is for later stands"
    level.open = True
    loop.at_boundary()
    assert (level.value, loop.rate) == (3.0, START_RATE / 2)


def test_what_came_when_the_run_was_protected_is_newer_than_that() -> None:
    loop, _ = waiting(protection=Protection())
    loop.deliver(2, set_change(0.4))
    alarmed(loop)
    assert loop.rate == 0.4
    assert loop.held() == [1]


def test_a_run_that_is_held_without_a_cut_changes_nothing_that_waits() -> None:
    loop, _ = waiting(set_change(0.4), protection=Protection(cut=1))
    alarmed(loop)
    assert loop.held() == [1]


def schedule(**fields: Any) -> update_pb2.Change:
    change = update_pb2.Change(parameter="learning_rate")
    change.schedule.shape = update_pb2.SCHEDULE_SHAPE_LINEAR
    for name, value in fields.items():
        setattr(change.schedule, name, value)
    return change


RAILS = {"learning_rate": GuardRails(max_relative_change=3.0)}


@pytest.mark.parametrize(
    ("change", "options"),
    [
        (set_change(0.25), {}),
        (schedule(), {}),
        (multiply_change(0.5), {}),
        (set_change(1.5), {"guard_rails": RAILS}),
        (ramp_change(1.5, 3), {"guard_rails": RAILS}),
    ],
)
def test_what_only_the_value_in_force_forbids_may_be_otherwise_when_it_is_due(
    change: update_pb2.Change, options: Any
) -> None:
    """As in a warm-up, whose first step has a learning rate of 0 and whose next ones have little.

    It begins there: at step 1, with a rate of 0 or, where a factor counts, of a tenth.
    """
    little = 0.1 if options else 0.0
    loop, level = waiting(change, shape=lambda done: little if done < 3 else 1.0, **options)
    assert loop.rate == START_RATE * little
    assert loop.held() == [1]
    loop.steps(2)
    level.open = True
    loop.at_boundary()
    loop.step()
    assert loop.outcome(1).WhichOneof("result") == "applied", loop.outcome(1)


@pytest.mark.parametrize(
    ("change", "reason", "options"),
    [
        (set_change(0.0), "INVALID_VALUE", {}),
        (set_change(-1.0), "INVALID_VALUE", {}),
        (set_change(0.1, parameter="nothing"), "UNKNOWN_PARAMETER", {}),
        (multiply_change(4.0), "GUARD_RAIL", {"guard_rails": RAILS}),
        (
            set_change(0.9),
            "GUARD_RAIL",
            {"guard_rails": {"learning_rate": GuardRails(maximum=0.8)}},
        ),
    ],
)
def test_what_can_never_be_is_refused_at_once(
    change: update_pb2.Change, reason: str, options: Any
) -> None:
    loop, level = waiting(change, shape=lambda done: float(done > 3), **options)
    if reason == "UNKNOWN_PARAMETER":
        assert loop.held() == [1], "what a run offers is seen when it is due"
        level.open = True
        loop.at_boundary()
    assert loop.outcome(1).rejected.reason == reason
    assert level.value == 1.0


def test_a_factor_may_fit_by_the_time_it_is_due() -> None:
    level = Level()
    loop = PlainLoop(extra={"level": level})
    loop.deliver(1, set_change(4.0, parameter="level"))
    loop.deliver(2, multiply_change(0.25, "level"))
    loop.deliver(3, multiply_change(9.0, "level"))
    level.value = 8.0
    loop.step()
    assert loop.held() == [1, 2, 3], "it would be 72 now"
    level.open = True
    loop.steps(2)
    assert level.value == 9.0
