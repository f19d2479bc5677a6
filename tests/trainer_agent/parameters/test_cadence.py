"""How often real trainers log, evaluate and save, and when they stop."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import Trainer
from transformers.trainer_callback import DefaultFlowCallback

from midcourse.control.v1 import update_pb2
from tests.support.plain_trainer import Points, plain_trainer
from tests.support.scripted_link import LinkScript, delivery
from tests.support.tiny_runs import outcome
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
from trainer_agent import RuntimeParameterUpdateCallback, attach
from trainer_agent.parameters import Boundary, Release, Set
from trainer_agent.parameters.cadence import find
from trainer_agent.run import Run

CADENCE: dict[str, Any] = {
    "logging_steps": 4,
    "eval_strategy": "steps",
    "eval_steps": 5,
    "save_strategy": "steps",
    "save_steps": 6,
    "eval_dataset": Points(4),
}
VALUES = {"logging_steps": 1, "eval_steps": 2, "save_steps": 3}


def events(trainer: Trainer) -> dict[str, list[float]]:
    """Return the steps at which a trainer logged, evaluated and saved."""
    history = trainer.state.log_history
    saved = Path(str(trainer.args.output_dir)).glob("checkpoint-*")
    return {
        "logged": [entry["step"] for entry in history if "loss" in entry],
        "evaluated": [entry["step"] for entry in history if "eval_loss" in entry],
        "saved": sorted(int(each.name.rpartition("-")[2]) for each in saved),
    }


def test_as_a_plain_callback_would_and_kept_on_resume(tmp_path: Path) -> None:
    def write(step: int, trainer: Trainer) -> None:
        if step == 4:
            vars(trainer.state).update(VALUES)

    script = {4: [change(name, value) for name, value in VALUES.items()]}
    live, link = steer(tmp_path / "live", script, **CADENCE)
    assert all_applied(link)
    plain, result = scripted(tmp_path / "plain", write, **CADENCE)
    assert events(live) == events(plain)
    assert events(live) == {
        "logged": [4, 5, 6, 7, 8, 9, 10],
        "evaluated": [6, 8, 10],
        "saved": [6, 9, 10],
    }
    outcome(live).assert_same(result)

    checkpoint = str(tmp_path / "live" / "checkpoint-6")
    again, link = steer(
        tmp_path / "again", {7: [release("logging_steps")]}, resume=checkpoint, **CADENCE
    )
    assert all_applied(link)
    assert events(again)["evaluated"] == [6, 8, 10]
    assert events(again)["saved"] == [9, 10]
    assert events(again)["logged"] == [4, 5, 6, 7, 8]  # released to every fourth step


def test_a_shorter_run_and_one_that_stays_shorter_on_resume(tmp_path: Path) -> None:
    args: dict[str, Any] = {"save_strategy": "steps", "save_steps": 5}
    live, link = steer(tmp_path / "live", {4: [change("max_steps", 7)]}, **args)
    assert all_applied(link)

    def write(step: int, trainer: Trainer) -> None:
        trainer.state.max_steps = 7 if step >= 4 else 10

    _, plain = scripted(tmp_path / "plain", write, **args)
    outcome(live).assert_same(plain)
    assert live.state.global_step == 7
    checkpoint = str(tmp_path / "live" / "checkpoint-5")
    again, _ = steer(tmp_path / "again", {}, resume=checkpoint, **args)
    assert again.state.global_step == 7
    outcome(again).assert_same(plain)


@pytest.mark.parametrize("epochs", [{}, {"max_steps": -1, "num_train_epochs": 1}])
def test_a_longer_run_goes_over_the_data_again(tmp_path: Path, epochs: dict[str, Any]) -> None:
    """Sixteen steps are an epoch; the run goes on into the next one, also after a resumption."""
    args: dict[str, Any] = {
        "save_strategy": "steps",
        "save_steps": 6,
        "lr_scheduler_type": "constant",
        **epochs,
    }
    script = {4: [change("max_steps", 20)]}
    live, link = steer(tmp_path / "live", script, **args)
    assert all_applied(link)
    started_so = plain_trainer(tmp_path / "plain", **{**args, "max_steps": 20})
    started_so.train()
    assert live.state.global_step == 20
    outcome(live).assert_same(outcome(started_so))
    checkpoint = str(tmp_path / "live" / "checkpoint-6")
    again, _ = steer(tmp_path / "again", {}, resume=checkpoint, **args)
    assert again.state.global_step == 20
    outcome(again).assert_same(outcome(started_so))


def callback_alone(directory: Path, value: int) -> tuple[Trainer, Any]:
    script = LinkScript({4: [delivery(1, change("max_steps", value))]})
    trainer = plain_trainer(
        directory, callbacks=[RuntimeParameterUpdateCallback("job", link_factory=script)]
    )
    trainer.train()
    return trainer, script.link


def test_a_callback_alone_does_not_know_how_much_data_there_is(tmp_path: Path) -> None:
    trainer, link = callback_alone(tmp_path, 11)
    assert "10 steps at most" in rejection(link).message
    assert "attach the trainer" in rejection(link).message
    assert trainer.state.global_step == 10
    trainer, link = callback_alone(tmp_path, 6)
    assert (all_applied(link), trainer.state.global_step) == (True, 6)


def test_not_below_the_steps_done(tmp_path: Path) -> None:
    trainer, link = steer(tmp_path, {4: [change("max_steps", 4)]})
    rejected = rejection(link)
    assert (rejected.reason, rejected.in_force[0].value.integer) == ("OUT_OF_BOUNDS", 10)
    assert "the least is 5" in rejected.message
    assert trainer.state.global_step == 10
    trainer, link = steer(tmp_path, {4: [change("max_steps", 5)]})
    assert (all_applied(link), trainer.state.global_step) == (True, 5)


def test_data_without_a_length_is_not_begun_again(tmp_path: Path) -> None:
    class Stream(torch.utils.data.IterableDataset[dict[str, torch.Tensor]]):
        def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
            points = Points()
            return (points[index % 64] for index in range(100))

    _, link = steer(tmp_path, {4: [change("max_steps", 20)]}, train_dataset=Stream())
    assert "no length" in rejection(link).message


def test_release_of_a_number_of_steps_that_is_past() -> None:
    state = SimpleNamespace(max_steps=10, num_train_epochs=1)
    (parameter,) = find(Run(args=SimpleNamespace(), state=state))
    parameter.apply(Set("max_steps", 9), Boundary(4, 10))
    assert "step 12 is next" in refusal(parameter, Release("max_steps"), Boundary(11, 13)).message
    parameter.apply(Release("max_steps"), Boundary(4, 9))
    assert (state.max_steps, parameter.state_dict()) == (10, {})


@pytest.mark.parametrize(
    ("name", "args", "words"),
    [
        ("logging_steps", {"logging_strategy": "epoch"}, "logs at the end of each epoch"),
        ("eval_steps", {}, "eval_strategy is 'no': the trainer evaluates at no step"),
        (
            "save_steps",
            {
                "save_strategy": "best",
                "eval_strategy": "epoch",
                "metric_for_best_model": "loss",
                "eval_dataset": Points(4),
            },
            "saves whenever the metric is the best",
        ),
    ],
)
def test_where_another_rule_holds_it_says_so(
    tmp_path: Path, name: str, args: dict[str, Any], words: str
) -> None:
    spec = declared(plain_trainer(tmp_path, max_steps=1, **args), name)
    assert not spec.operations
    assert words in spec.unavailable_reason


def test_without_the_flow_callback_nothing_is_offered(tmp_path: Path) -> None:
    trainer = plain_trainer(tmp_path)
    trainer.remove_callback(DefaultFlowCallback)
    for parameter in find(Run(trainer=trainer, args=trainer.args, state=trainer.state)):
        assert parameter.spec().unavailable_reason


def test_the_best_model_is_saved_where_it_was_evaluated(tmp_path: Path) -> None:
    args: dict[str, Any] = {**CADENCE, "save_steps": 5, "load_best_model_at_end": True}
    _, link = steer(tmp_path, {2: [change("eval_steps", 4)]}, **args)
    assert "save_steps to be a multiple of eval_steps" in rejection(link).message
    _, link = steer(tmp_path, {2: [change("eval_steps", 1), change("save_steps", 3)]}, **args)
    assert all_applied(link)


@given(
    st.lists(
        st.tuples(st.sampled_from(sorted(VALUES)), st.one_of(st.none(), st.integers(-1, 50))),
        max_size=10,
    )
)
@settings(max_examples=50)
def test_random_sequences(asked: list[tuple[str, int | None]]) -> None:
    began = {"logging_steps": 500, "eval_steps": 400, "save_steps": 300}
    state = SimpleNamespace(**began)
    strategies = {f"{name}_strategy": "steps" for name in ("logging", "eval", "save")}
    found = {each.name: each for each in find(Run(args=SimpleNamespace(**strategies), state=state))}
    model = dict(began)
    for name, value in asked:
        if value is not None and value < 1:
            assert refusal(found[name], Set(name, value), Boundary(1)).reason == "OUT_OF_BOUNDS"
            continue
        found[name].apply(Release(name) if value is None else Set(name, value), Boundary(1))
        model[name] = began[name] if value is None else value
        assert vars(state) == model


LENGTHENED = [
    pytest.param([change("max_steps", 16), None], {}, 16, id="max_steps"),
    pytest.param(
        [change("gradient_accumulation_steps", 2), None],
        {"max_steps": -1, "num_train_epochs": 2, "gradient_accumulation_steps": 4},
        4 + (32 - 16) // 2,
        id="accumulation",
    ),
]


@pytest.mark.parametrize("together", [True, False])
@pytest.mark.parametrize(("changes", "args", "length"), LENGTHENED)
def test_a_schedule_over_what_remains_goes_by_what_was_changed_just_before(
    changes: list[Any], args: dict[str, Any], length: int, together: bool, tmp_path: Path
) -> None:
    def rates(steps: int | None, folder: str) -> dict[int, float]:
        schedule = update_pb2.Change(parameter="learning_rate")
        schedule.schedule.shape = update_pb2.SCHEDULE_SHAPE_LINEAR
        if steps is not None:
            schedule.schedule.steps = steps
        asked = [each or schedule for each in changes]
        script = [delivery(1, *asked)]
        if not together:
            script = [delivery(number, each) for number, each in enumerate(asked, 1)]
        links = LinkScript({4: script})
        trainer = plain_trainer(tmp_path / folder, **args)
        attach(trainer, "job", link_factory=links)
        trainer.train()
        assert all_applied(links.link)
        assert trainer.state.global_step == length
        return links.link.metric("learning_rate")

    assert rates(None, "all") == rates(length - 4, "as-many")


EPOCHS: dict[str, Any] = {
    "max_steps": -1,
    "num_train_epochs": 2,
    "gradient_accumulation_steps": 4,
    "save_strategy": "steps",
    "save_steps": 1,
}
FINER = change("gradient_accumulation_steps", 2)


@pytest.mark.parametrize("steps", [6, 8, 12, 20])
def test_a_run_ends_where_it_was_told_to_whatever_becomes_of_the_batch_size(
    steps: int, tmp_path: Path
) -> None:
    """Also where that is what was planned before (8), or would be planned afterwards (12)."""
    script = {2: [change("max_steps", steps)], 4: [FINER], 5: [change("global_batch_size", 4)]}
    trainer, link = steer(tmp_path, script, **EPOCHS)
    assert all_applied(link)
    assert trainer.state.global_step == trainer.state.max_steps == steps
    again, _ = steer(tmp_path / "again", {}, resume=str(tmp_path / "checkpoint-5"), **EPOCHS)
    assert again.state.global_step == steps
    outcome(again).assert_same(outcome(trainer))


def test_released_the_end_is_what_the_batch_size_makes_it(tmp_path: Path) -> None:
    script = {2: [change("max_steps", 20)], 4: [FINER], 6: [release("max_steps")]}
    trainer, link = steer(tmp_path / "released", script, **EPOCHS)
    assert all_applied(link)
    assert trainer.state.global_step == 4 + 8
    released = link.outcomes[-1].applied.transitions[0]
    assert (released.old_value.integer, released.new_value.integer) == (20, 12)
    last = max(link.metric("learning_rate").items())
    assert last[0] == 12
    assert 0 < last[1] < 0.02, "the schedule ends with the run"


def test_a_release_that_is_taken_back_leaves_what_was_set(tmp_path: Path) -> None:
    script = {
        2: [change("max_steps", 20)],
        4: [FINER],
        6: [release("max_steps"), change("logging_steps", 0)],
    }
    trainer, link = steer(tmp_path, script, **EPOCHS)
    assert link.outcomes[-1].HasField("rejected")
    assert trainer.state.global_step == 20
