"""What rides in the checkpoint, and what a resumed run makes of it."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from tests.trainer_agent.parameters.runs import EVERY, NAME, STEPS, Run
from trainer_agent.parameters import Multiply, Ramp, Release, Schedule, Set, SetMode, Shape

AT = 7


@pytest.mark.parametrize("name", ["linear", "cosine", "warmup_stable_decay", "LambdaLR"])
def test_a_scaled_lambda_schedule_resumes_without_this_package(name: str) -> None:
    whole = Run(EVERY[name]).until(AT)
    whole.apply(Set(NAME, 0.05))
    held = whole.until(AT + 3).checkpoint()
    whole.until(STEPS)
    resumed = Run(EVERY[name], steered=False).resume(held).until(STEPS)
    assert resumed.used == whole.used[AT + 3 :]
    assert all(map(torch.equal, resumed.weights(), whole.weights()))


@pytest.mark.parametrize("name", ["cosine", "CosineAnnealingLR"])
def test_a_schedule_override_wins_over_other_arguments_at_resume(name: str) -> None:
    whole = Run(EVERY[name]).until(AT)
    whole.apply(Set(NAME, 0.05))
    held = whole.until(AT + 3).checkpoint()
    whole.until(STEPS)
    resumed = Run(EVERY[name], rates=(0.9,)).resume(held).until(STEPS)
    assert resumed.used == whole.used[AT + 3 :]


def test_nothing_to_say_without_a_change_and_after_a_release() -> None:
    run = Run(EVERY["cosine"]).until(AT)
    untouched = {**run.lr.state_dict(), "global_step": 0}
    assert untouched["groups"] is None
    run.apply(Multiply(NAME, 0.5))
    run.until(AT + 1).apply(Release(NAME))
    run.until(AT + 2)
    assert {**run.lr.state_dict(), "global_step": 0} == untouched


@pytest.mark.parametrize("name", ["cosine", "CosineAnnealingLR", "none"])
def test_going_back_to_an_earlier_checkpoint_within_a_process(name: str) -> None:
    run = Run(EVERY[name]).until(AT)
    before = run.checkpoint()
    run.apply(Schedule(NAME, Shape.COSINE, peak=0.2, warmup_steps=3))
    during = run.until(AT + 2).checkpoint()
    run.until(STEPS)
    first = list(run.used)
    run.resume(during).used.clear()
    assert run.until(STEPS).used == first[AT + 2 :]
    run.resume(before).used.clear()
    assert run.until(STEPS).used == Run(EVERY[name], steered=False).until(STEPS).used[AT:]


@pytest.mark.parametrize("name", ["ReduceLROnPlateau", "home-made"])
def test_what_the_schedule_was_built_around_is_remembered(name: str) -> None:
    held = Run(EVERY[name]).until(AT).checkpoint()
    run = Run(EVERY[name]).until(3).resume(held)
    now = run.now()[0]
    run.apply(Set(NAME, 0.2, mode=SetMode.PEAK))
    assert run.now() == pytest.approx([now * 2])


def test_the_state_is_plain_json() -> None:
    run = Run(EVERY["CosineAnnealingLR"], (0.1, 0.02)).until(AT)
    for change in (
        Set(NAME, 0.05),
        Schedule(NAME, Shape.LINEAR),
        Ramp(NAME, 0.07, 5),
        Set(NAME, 0.01, mode=SetMode.HOLD, hold_steps=3),
    ):
        run.lr.apply(change, run.boundary)
        state = run.lr.state_dict()
        assert json.loads(json.dumps(state, allow_nan=False)) == json.loads(json.dumps(state))
        other = Run(EVERY["CosineAnnealingLR"], (0.1, 0.02))
        other.lr.load_state_dict(json.loads(json.dumps(state)))
        assert other.lr.state_dict() == state


def _broken(state: dict[str, Any], how: str) -> dict[str, Any]:
    match how:
        case "version":
            return {**state, "version": 2}
        case "missing":
            return {key: value for key, value in state.items() if key != "groups"}
        case "no override":
            return {**state, "groups": [{**state["groups"][0], "override": None}]}
        case "odd curve":
            over = {**state["groups"][0]["override"], "ramp": {"from": 1}}
            return {**state, "groups": [{**state["groups"][0], "override": over}]}
        case "text":
            return {**state, "groups": [{**state["groups"][0], "own": "much"}]}
        case "groups":
            return {**state, "groups": state["groups"] * 2}
        case _:
            return {**state, "scheduler": "StepLR"}


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("version", "has version 2"),
        ("missing", "damaged"),
        ("no override", "damaged"),
        ("odd curve", "damaged"),
        ("text", "damaged"),
        ("groups", "has 2 parameter groups, and this run has 1"),
        ("scheduler", "over StepLR when the state was saved, and this run has"),
    ],
)
@pytest.mark.parametrize("name", ["cosine", "CosineAnnealingLR"])
def test_a_state_that_does_not_fit_is_refused_and_changes_nothing(
    name: str, how: str, words: str
) -> None:
    run = Run(EVERY[name]).until(AT)
    run.apply(Set(NAME, 0.05, mode=SetMode.HOLD))
    state = run.lr.state_dict()
    with pytest.raises(ValueError, match=words):
        run.lr.load_state_dict(_broken(state, how))
    assert run.lr.state_dict() == state
    run.until(STEPS)
    assert [used[0] for used in run.used[AT:]] == [0.05] * (STEPS - AT)
