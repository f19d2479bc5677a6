"""The owner's limits, declared to the control plane and enforced in the trainer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from midcourse.control.v1 import update_pb2
from tests.support.plain_loop import START_RATE, PlainLoop
from tests.support.plain_trainer import plain_trainer
from tests.support.scripted_link import (
    LinkScript,
    delivery,
    multiply_change,
    ramp_change,
    set_change,
)
from trainer_agent import GuardRails, attach


def loop_with(rails: GuardRails) -> PlainLoop:
    return PlainLoop(guard_rails={"learning_rate": rails})


@pytest.mark.parametrize(
    ("rails", "change", "options", "reason", "says"),
    [
        (GuardRails(frozen=True), set_change(0.4), {}, "PARAMETER_FROZEN", "frozen"),
        (
            GuardRails(allowed_principals=("alice", "bob")),
            set_change(0.4),
            {"author": "mallory"},
            "NOT_ALLOWED",
            "'mallory' may not change learning_rate; the job's owner allows: alice, bob",
        ),
        (GuardRails(maximum=0.6), set_change(0.7), {"force": True}, "GUARD_RAIL", "at most 0.6"),
        (GuardRails(minimum=0.3), set_change(0.2), {"force": True}, "GUARD_RAIL", "at least 0.3"),
        (GuardRails(maximum=0.6), multiply_change(2.0), {}, "GUARD_RAIL", "at most 0.6"),
        (GuardRails(minimum=0.3), ramp_change(0.2, 5), {}, "GUARD_RAIL", "at least 0.3"),
        (GuardRails(max_relative_change=3), set_change(0.1), {}, "GUARD_RAIL", "use force"),
        (GuardRails(max_relative_change=3), multiply_change(4.0), {}, "GUARD_RAIL", "4 times"),
    ],
)
def test_what_is_beyond_them_is_rejected(
    rails: GuardRails, change: Any, options: Any, reason: str, says: str
) -> None:
    loop = loop_with(rails)
    loop.deliver(1, change, **options)
    loop.step()
    rejected = loop.outcome(1).rejected
    assert (rejected.reason, rejected.parameter) == (reason, "learning_rate")
    assert says in rejected.message
    assert loop.rate == START_RATE
    assert [each.value.number for each in rejected.in_force] == [START_RATE]


@pytest.mark.parametrize(
    ("rails", "change", "options"),
    [
        (GuardRails(allowed_principals=("alice",)), set_change(0.4), {"author": "alice"}),
        (GuardRails(max_relative_change=3), set_change(0.1), {"force": True}),
        (GuardRails(max_relative_change=5, minimum=0.1, maximum=1), set_change(0.1), {}),
    ],
)
def test_what_is_within_them_is_applied(rails: GuardRails, change: Any, options: Any) -> None:
    loop = loop_with(rails)
    loop.deliver(1, change, **options)
    loop.steps(2)
    assert loop.outcome(1).HasField("applied")
    assert loop.used[2] == change.set.value.number


@given(
    factors=st.lists(st.floats(0.05, 20), max_size=4),
    low=st.floats(0.01, 0.4),
    high=st.floats(0.6, 5),
    limit=st.floats(1.5, 15),
)
def test_whatever_is_asked_the_value_stays_within_bounds(
    factors: list[float], low: float, high: float, limit: float
) -> None:
    loop = loop_with(GuardRails(minimum=low, maximum=high, max_relative_change=limit))
    loop.deliver(1, *map(multiply_change, factors), set_change(0.5)) if factors else None
    loop.deliver(2, *map(multiply_change, factors))
    before = loop.rate
    loop.steps(2)
    assert low <= loop.rate <= high or loop.rate == before


def test_they_are_declared(tmp_path: Path) -> None:
    links = LinkScript()
    trainer = plain_trainer(tmp_path, max_steps=1)
    rails = GuardRails(maximum=1e-3, max_relative_change=3, allowed_principals=("alice",))
    attach(trainer, "job", guard_rails={"learning_rate": rails}, link_factory=links)
    trainer.train()
    hello = links.link.first_hello
    assert hello is not None
    spec = next(each for each in hello.state.parameters if each.name == "learning_rate")
    assert spec.guard_rails.bounds.maximum == 1e-3
    assert not spec.guard_rails.bounds.HasField("minimum")
    assert spec.guard_rails.max_relative_change == 3
    assert spec.guard_rails.allowed_principals == ["alice"]
    others = [each for each in hello.state.parameters if each.name != "learning_rate"]
    assert not any(each.HasField("guard_rails") for each in others)


def test_limits_of_what_there_is_not_end_steering_and_not_training(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A limit with a slip of the pen protects nothing: rather no steering than that."""
    links = LinkScript({3: [delivery(1, set_change(0.05))]})
    trainer = plain_trainer(tmp_path)
    attach(trainer, "job", guard_rails={"lerning_rate": GuardRails()}, link_factory=links)
    trainer.train()
    assert trainer.state.global_step == 10
    (fault,) = links.link.faults
    assert "lerning_rate" in fault.message
    assert "learning_rate" in fault.message.replace("lerning_rate", "")
    assert links.link.outcomes[0].rejected.reason == "STEERING_SWITCHED_OFF"
    assert "training goes on" in caplog.text


def test_what_a_change_comes_to_is_taken_back_with_all_the_rest() -> None:
    loop = loop_with(GuardRails(maximum=0.6))
    loop.deliver(1, set_change(0.55), multiply_change(1.5))
    loop.at_boundary()
    assert loop.outcome(1).rejected.reason == "GUARD_RAIL"
    assert loop.rate == START_RATE


@pytest.mark.parametrize(
    "changes",
    [
        (multiply_change(2.0), multiply_change(2.0)),
        (multiply_change(0.5), multiply_change(0.5)),
        (set_change(1.4), multiply_change(1.1)),
        (set_change(5.0, update_pb2.SET_MODE_PEAK),),
    ],
    ids=["up", "down", "value and factor", "peak"],
)
def test_the_largest_factor_is_that_of_the_whole_update(changes: Any) -> None:
    loop = loop_with(GuardRails(max_relative_change=3))
    loop.deliver(1, *changes)
    loop.step()
    rejected = loop.outcome(1).rejected
    assert (rejected.reason, rejected.parameter) == ("GUARD_RAIL", "learning_rate")
    assert f"the value in force ({START_RATE!r})" in rejected.message
    assert loop.rate == START_RATE


@pytest.mark.parametrize(
    ("changes", "options"),
    [
        ((multiply_change(2.0), multiply_change(2.0)), {"force": True}),
        ((multiply_change(2.5), multiply_change(0.5)), {}),
        ((multiply_change(3.0),), {}),
    ],
)
def test_the_whole_update_may_go_as_far_as_one_change(changes: Any, options: Any) -> None:
    loop = loop_with(GuardRails(max_relative_change=3))
    loop.deliver(1, *changes, **options)
    loop.steps(2)
    assert loop.outcome(1).HasField("applied")
