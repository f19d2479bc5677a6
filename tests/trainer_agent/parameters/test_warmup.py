"""The warm-up of real schedules, re-planned while it lasts."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import Trainer, get_scheduler

from tests.support.plain_trainer import plain_trainer
from tests.support.tiny_runs import outcome
from tests.trainer_agent.parameters.runs import HUGGING_FACE
from tests.trainer_agent.parameters.steered import (
    all_applied,
    change,
    declared,
    refusal,
    rejection,
    release,
    scripted,
    steer,
)
from tests.trainer_agent.parameters.warmup_plan import (
    AT,
    LATER,
    TOTAL,
    WARMUP,
    WITHOUT,
    Plan,
)
from trainer_agent.parameters import (
    Multiply,
    Release,
    Schedule,
    Set,
    SetMode,
    Shape,
)
from trainer_agent.parameters.warmup import find, ratio_of, steps_of
from trainer_agent.run import Run


@pytest.mark.parametrize("warmup", [AT, 5, LATER])
@pytest.mark.parametrize("kind", sorted(set(HUGGING_FACE) - WITHOUT))
def test_from_there_on_it_is_a_run_that_began_so(kind: str, warmup: int) -> None:
    live, began_so = Plan(kind, done=AT), Plan(kind, warmup, done=AT)
    applied = live.set(warmup)
    assert (applied.old.value, applied.new.value) == (WARMUP, warmup)
    assert live.scheduler.get_last_lr() == live.now == began_so.now
    parameter = live.found["warmup_steps"]
    live.step()
    assert parameter.verify(applied, parameter.read(), live.here) is None
    began_so.step()
    assert live.rates() == began_so.rates()


@pytest.mark.parametrize("kind", sorted(set(HUGGING_FACE) - WITHOUT))
def test_undo_and_release_are_exact(kind: str) -> None:
    live, untouched = Plan(kind, done=AT), Plan(kind, done=AT)
    parameter = live.found["warmup_steps"]
    parameter.undo(live.set(LATER))
    assert parameter.state_dict() == {}
    live.set(LATER)
    live.step()
    parameter.apply(Release("warmup_steps"), live.here)
    untouched.step()
    assert live.rates() == untouched.rates()
    assert str(live.scheduler.state_dict()) == str(untouched.scheduler.state_dict())


@pytest.mark.parametrize("kind", sorted(WITHOUT))
def test_schedules_without_a_warm_up_say_so(kind: str) -> None:
    for parameter in Plan(kind).found.values():
        assert "has no warm-up" in str(parameter.spec().unavailable_reason)


def test_a_schedule_that_began_without_a_warm_up_says_so() -> None:
    for parameter in Plan("linear", 0).found.values():
        assert "began without a warm-up" in str(parameter.spec().unavailable_reason)


def test_schedules_of_the_scripts_own_say_so() -> None:
    plan = Plan("linear")
    run = Run(
        optimizer=plan.optimizer,
        lr_scheduler=plan.scheduler,
        learning_rate=plan.rate,
        args=SimpleNamespace(
            lr_scheduler_type="cosine", lr_scheduler_kwargs=None, get_warmup_steps=None
        ),
        state=SimpleNamespace(max_steps=TOTAL),
    )
    for parameter in find(run):
        assert "not the one that the run's arguments" in str(parameter.spec().unavailable_reason)
    assert list(find(Run(lr_scheduler=plan.scheduler))) == []


@pytest.mark.parametrize(
    ("done", "value", "reason", "words"),
    [
        (AT, 2, "OUT_OF_BOUNDS", "at least 3, which ends it here"),
        (AT, TOTAL, "OUT_OF_BOUNDS", "at most 15"),
        (AT, -1, "OUT_OF_BOUNDS", "at least 0"),
        (AT, 4.5, "INVALID_TYPE", "whole number"),
        (WARMUP, 9, "WARMUP_OVER", "follow a schedule with a warm-up"),
        (WARMUP + 2, 9, "WARMUP_OVER", "8 are done"),
    ],
)
def test_refusals(done: int, value: float, reason: str, words: str) -> None:
    plan = Plan("linear", done=done)
    refused = refusal(plan.found["warmup_steps"], Set("warmup_steps", value), plan.here)
    assert (refused.reason, refused.value_in_force) == (reason, WARMUP)
    assert words in refused.message


def test_a_warm_up_that_is_over_stays_released_too() -> None:
    plan = Plan("linear", done=AT)
    plan.set(8)
    plan.step(6)
    refused = refusal(plan.found["warmup_steps"], Release("warmup_steps"), plan.here)
    assert refused.reason == "WARMUP_OVER"


def test_what_lies_over_the_schedule_stays_there() -> None:
    plan, began_so = Plan("linear", done=AT), Plan("linear", LATER, done=AT)
    plan.rate.apply(Multiply("learning_rate", 0.5), plan.here)
    plan.step()
    began_so.step()
    plan.set(LATER)
    assert plan.now == pytest.approx([rate * 0.5 for rate in began_so.now])
    plan.rate.apply(Set("learning_rate", 0.02, mode=SetMode.HOLD), plan.here)
    plan.step()
    plan.found["warmup_steps"].apply(Set("warmup_steps", 7), plan.here)
    assert plan.now[0] == 0.02
    plan.rate.apply(Release("learning_rate"), plan.here)
    assert plan.now == Plan("linear", 7, done=AT + 2).now


def test_not_at_the_very_boundary_of_a_changed_learning_rate() -> None:
    plan = Plan("linear", done=AT)
    applied = plan.rate.apply(Set("learning_rate", 0.02), plan.here)
    parameter = plan.found["warmup_steps"]
    asked = Set("warmup_steps", LATER)
    assert refusal(parameter, asked, plan.here).reason == "LEARNING_RATE_CHANGED"
    plan.rate.undo(applied)
    parameter.check(asked, plan.here)
    plan.set(LATER)
    plan.rate.apply(Set("learning_rate", 0.02), plan.here)
    assert plan.now[0] == 0.02


def test_not_below_another_schedule() -> None:
    plan = Plan("linear", done=AT)
    plan.rate.apply(Schedule("learning_rate", Shape.COSINE, steps=8), plan.here)
    plan.step()
    parameter = plan.found["warmup_steps"]
    refused = refusal(parameter, Set("warmup_steps", LATER), plan.here)
    assert refused.reason == "SCHEDULE_REPLACED"


@given(st.integers(1, 10**6).flatmap(lambda n: st.tuples(st.integers(0, n - 1), st.just(n))))
def test_a_ratio_is_read_as_what_leads_to_it(case: tuple[int, int]) -> None:
    steps, length = case
    assert steps_of(ratio_of(steps, length), length) == steps


def test_as_a_ratio() -> None:
    plan = Plan("cosine", done=AT)
    assert plan.found["warmup_ratio"].read().value == WARMUP / TOTAL
    assert plan.set(0.5, "warmup_ratio").new.value == 0.5
    assert plan.found["warmup_steps"].read().value == 8
    # Whole steps are what there is, and what is reported.
    assert plan.set(0.55, "warmup_ratio").new.value == 9 / TOTAL
    assert plan.rates() == Plan("cosine", 9, done=AT).rates()


@given(st.lists(st.one_of(st.none(), st.integers(0, 15), st.just("step")), max_size=10))
def test_random_sequences(asked: list[int | str | None]) -> None:
    plan, warmup, done = Plan("linear", 4), 4, 0
    parameter = plan.found["warmup_steps"]
    for each in asked:
        if each == "step":
            plan.step()
            done += 1
            continue
        wanted = 4 if each is None else int(each)
        made = Release("warmup_steps") if each is None else Set("warmup_steps", wanted)
        if (done < warmup and wanted >= done) or (each is None and wanted == warmup):
            parameter.apply(made, plan.here)
            warmup = wanted
        else:
            refusal(parameter, made, plan.here)
        assert parameter.read().value == warmup
        assert plan.now == Plan("linear", warmup, done=done).now


def test_a_trainer_is_steered_as_a_plain_callback_would_and_resumes(tmp_path: Path) -> None:
    args: dict[str, Any] = {"warmup_steps": 6, "save_strategy": "steps", "save_steps": 4}

    def write(step: int, trainer: Trainer) -> None:
        if step in {2, 5}:
            scheduler: Any = getattr(trainer.lr_scheduler, "scheduler", trainer.lr_scheduler)
            other = torch.optim.SGD([torch.zeros(1)], lr=0.1)
            (shape,) = get_scheduler("linear", other, {2: 8, 5: 6}[step], 10).lr_lambdas
            scheduler.lr_lambdas = [shape] * 2
            for group in scheduler.optimizer.param_groups:
                group["lr"] = 0.1 * shape(step)
            scheduler._last_lr = [group["lr"] for group in scheduler.optimizer.param_groups]

    script = {2: [change("warmup_steps", 8)], 5: [release("warmup_steps")]}
    live, link = steer(tmp_path / "live", script, **args)
    assert all_applied(link)
    _, plain = scripted(tmp_path / "plain", write, **args)
    outcome(live).assert_same(plain)
    checkpoint = str(tmp_path / "live" / "checkpoint-4")
    again, link = steer(tmp_path / "again", {5: script[5]}, resume=checkpoint, **args)
    assert all_applied(link)
    outcome(again).assert_same(plain)


def test_refused_and_declared_by_a_trainer(tmp_path: Path) -> None:
    _, link = steer(tmp_path, {4: [change("warmup_steps", 8)]}, warmup_steps=3)
    assert rejection(link).reason == "WARMUP_OVER"
    spec = declared(plain_trainer(tmp_path, max_steps=2, warmup_steps=1), "warmup_ratio")
    assert spec.current_value.number == 0.5
    trainer = plain_trainer(tmp_path, max_steps=2, lr_scheduler_type="constant")
    assert not declared(trainer, "warmup_steps").operations


def test_together_with_a_stretched_schedule(tmp_path: Path) -> None:
    """A batch change stretches what was re-planned, also after a resumption; then it is fixed."""
    args: dict[str, Any] = {
        "warmup_steps": 8,
        "max_steps": -1,
        "num_train_epochs": 2,
        "save_strategy": "steps",
        "save_steps": 6,
    }
    script = {
        2: [change("warmup_steps", 10)],
        4: [change("gradient_accumulation_steps", 2)],
        8: [change("warmup_steps", 12)],
    }
    live, link = steer(tmp_path / "live", script, **args)
    results = [each.WhichOneof("result") for each in link.outcomes]
    assert results == ["applied", "applied", "rejected"]
    assert link.outcomes[-1].rejected.reason == "SCHEDULE_STRETCHED"
    checkpoint = str(tmp_path / "live" / "checkpoint-6")
    again, _ = steer(tmp_path / "again", {}, resume=checkpoint, **args)
    outcome(again).assert_same(outcome(live))
