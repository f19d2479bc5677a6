"""The callback in real TRL trainers, against runs without it: equal to the bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from examples.offline import METHODS
from midcourse.control.v1 import update_pb2
from tests.support.scripted_link import LinkScript, delivery, ramp_change, set_change
from tests.support.tiny_runs import AtStep, Outcome, run, set_with_torch
from trainer_agent import attach

AT = 4
STEPS = 10
VALUE = 5e-4

_plain: dict[str, Outcome] = {}


@pytest.fixture(params=METHODS)
def method(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
def plain(method: str, tmp_path: Path) -> Outcome:
    """The run without the callback."""
    if method not in _plain:
        _plain[method] = run(method, tmp_path / "plain")
    return _plain[method]


def test_without_updates_a_run_is_as_without_the_callback(
    method: str, plain: Outcome, tmp_path: Path
) -> None:
    script = LinkScript()
    watched = run(method, tmp_path, lambda trainer: attach(trainer, "job", link_factory=script))
    watched.assert_same(plain)
    link = script.link
    assert not link.faults
    assert [report.step for report in link.steps if not report.HasField("metrics_step")]
    assert link.metric("loss") == {step: each["loss"] for step, each in plain.losses.items()}
    assert link.metric("learning_rate") == {
        step: each["learning_rate"] for step, each in plain.losses.items()
    }
    assert link.first_hello is not None
    assert link.first_hello.method == method


# With the other parameters of a method in one update it is among the oracles of every method but
# KTO. By itself it is the same for all.
ALONE = {"sft", "kto"}


@pytest.mark.parametrize(
    "method",
    [pytest.param(each, marks=() if each in ALONE else pytest.mark.long) for each in METHODS],
    indirect=True,
)
def test_a_live_set_is_what_a_plain_script_does(
    method: str, plain: Outcome, tmp_path: Path
) -> None:
    def change(step: int, optimizer: Any, scheduler: Any) -> None:
        if step == AT:
            set_with_torch(optimizer, scheduler, VALUE)

    scripted = run(
        method, tmp_path / "scripted", lambda trainer: trainer.add_callback(AtStep(change))
    )
    script = LinkScript({AT: [delivery(1, set_change(VALUE))]})
    steered = run(
        method, tmp_path / "live", lambda trainer: attach(trainer, "job", link_factory=script)
    )
    steered.assert_same(scripted)
    assert steered.differs(plain), "the change has to matter for this to mean anything"

    (outcome,) = script.link.outcomes
    assert outcome.revision == 1
    applied = outcome.applied
    assert applied.step == AT + 1
    before = plain.losses[AT + 1]["learning_rate"]
    assert {
        (each.parameter, each.old_value.number, each.new_value.number)
        for each in applied.transitions
    } == {("learning_rate", before, VALUE)}
    assert steered.losses[AT + 1]["learning_rate"] == VALUE
    assert applied.instance_id == script.link.first_hello.instance_id  # type: ignore[union-attr]
    assert not script.link.faults


def test_a_live_ramp_is_what_a_plain_script_does(tmp_path: Path) -> None:
    steps = 3

    def change(step: int, optimizer: Any, scheduler: Any) -> None:
        if step == AT:
            start.extend(group["lr"] for group in optimizer.param_groups)
        if AT <= step < AT + steps - 1:
            for group, begin in zip(optimizer.param_groups, start, strict=True):
                group["lr"] = begin + (VALUE - begin) * ((step - AT + 1) / steps)
        if AT + steps - 1 == step:
            # The schedule has gone on below; from here on it is scaled.
            for group, base, shape in zip(
                optimizer.param_groups, scheduler.base_lrs, scheduler.lr_lambdas, strict=True
            ):
                group["lr"] = base * shape(step)
            set_with_torch(optimizer, scheduler, VALUE)
        scheduler._last_lr = [group["lr"] for group in optimizer.param_groups]

    start: list[float] = []
    scripted = run(
        "sft", tmp_path / "scripted", lambda trainer: trainer.add_callback(AtStep(change))
    )
    script = LinkScript({AT: [delivery(1, ramp_change(VALUE, steps))]})
    steered = run(
        "sft", tmp_path / "live", lambda trainer: attach(trainer, "job", link_factory=script)
    )
    steered.assert_same(scripted)
    assert steered.losses[AT + steps]["learning_rate"] == VALUE
    assert script.link.outcomes[0].applied.step == AT + 1


@pytest.mark.parametrize("method", ["sft"], indirect=True)
def test_a_live_hold_ends_by_itself(method: str, plain: Outcome, tmp_path: Path) -> None:
    steps = 3
    hold = set_change(VALUE, update_pb2.SET_MODE_HOLD, steps)
    script = LinkScript({AT: [delivery(1, hold)]})
    held = run(method, tmp_path, lambda trainer: attach(trainer, "job", link_factory=script))
    rates = {step: each["learning_rate"] for step, each in held.losses.items()}
    assert rates == {
        step: VALUE if AT < step <= AT + steps else each["learning_rate"]
        for step, each in plain.losses.items()
    }


@pytest.mark.parametrize("method", ["sft"], indirect=True)
def test_the_rate_falls_to_zero_and_training_stands_still(
    method: str, plain: Outcome, tmp_path: Path
) -> None:
    hold = set_change(0.0, update_pb2.SET_MODE_HOLD)
    script = LinkScript({AT: [delivery(1, hold)]})
    stopped = run(method, tmp_path, lambda trainer: attach(trainer, "job", link_factory=script))
    assert stopped.differs(plain)
    assert [stopped.losses[step]["learning_rate"] for step in range(AT + 1, STEPS + 1)] == [0.0] * (
        STEPS - AT
    )
    assert script.link.outcomes[0].HasField("applied")
