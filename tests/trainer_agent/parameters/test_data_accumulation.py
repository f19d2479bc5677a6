"""Accumulation changed while real trainers train."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import TrainerCallback

from examples.offline import build_trainer
from tests.support.tiny_runs import outcome
from tests.trainer_agent.parameters.data_runs import (
    ACCUMULATION,
    GLOBAL,
    Numbered,
    Recorder,
    Steer,
    SummingRecorder,
    build,
    set_to,
    train,
    with_torch_alone,
)
from trainer_agent.parameters import Multiply, Release
from trainer_agent.parameters.data import prepare
from trainer_agent.parameters.data.chunking import Position, chunk, opens
from trainer_agent.parameters.data.loop import WrappedLoop

SAMPLES = 22
ALL = list(range(SAMPLES))


def test_nothing_changed_is_as_without(tmp_path: Path) -> None:
    args: dict[str, Any] = {"gradient_accumulation_steps": 4, "num_train_epochs": 2.5}
    plain, steer = build(tmp_path, ready=False, **args)
    plain.train()
    ready = train(tmp_path, **args)
    assert ready.steer.chunks == steer.chunks == [4, 4, 4, 4, 4, 2] * 2 + [4, 4, 4]
    model: Any = plain.model
    assert ready.seen == model.seen
    for mine, theirs in zip(ready.weights, model.parameters(), strict=True):
        assert torch.equal(mine, theirs)
    untimed = [
        [
            {
                name: value
                for name, value in entry.items()
                if "runtime" not in name and "per_" not in name
            }
            for entry in trainer.state.log_history
        ]
        for trainer in (plain, ready.trainer)
    ]
    assert untimed[0] == untimed[1]


@pytest.mark.parametrize("model", [Recorder, SummingRecorder])
@pytest.mark.parametrize(
    ("before", "after", "at", "chunks"),
    [
        (4, 2, 2, [4, 4, *[2] * 18]),
        (2, 4, 2, [2, 2, 4, 4, 4, 4, 2, 4, 4, 4, 4, 4, 2]),
        (4, 3, 3, [4, 4, 4, 3, 3, 3, 1, *[3] * 7, 1]),
        (2, 8, 4, [2, 2, 2, 2, 8, 6, 8, 8, 6]),
        (4, 9, 6, [4, 4, 4, 4, 4, 2, 9, 9, 4]),
    ],
)
def test_is_what_plain_torch_comes_to(
    model: type[Recorder], before: int, after: int, at: int, chunks: list[int], tmp_path: Path
) -> None:
    run = train(
        tmp_path,
        {2: [set_to(ACCUMULATION, after)]},
        gradient_accumulation_steps=before,
        model=model,
        samples=SAMPLES,
    )
    assert not run.steer.refused
    assert [made.step for made in run.steer.made] == [at]
    assert run.steer.chunks == chunks
    assert [sorted(epoch) for epoch in run.epochs(SAMPLES)] == [ALL, ALL]
    for mine, plain in zip(run.weights, with_torch_alone(run, SAMPLES, chunks), strict=True):
        assert torch.equal(mine, plain)
    # The run's steps follow, and the schedule, which is linear, ends where the run does.
    assert run.trainer.state.max_steps == run.trainer.state.global_step == len(chunks)
    planned, rates = -(-SAMPLES // before) * 2, run.steer.rates
    slope = 0.1 / planned
    there = 0.1 - slope * at
    for step, rate in enumerate(rates):
        left = (len(chunks) - step) / (len(chunks) - at)
        assert rate == pytest.approx(0.1 - slope * step if step < at else there * left)
    assert run.steer.epochs[-1] == 2.0


@settings(
    max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    samples=st.integers(3, 30),
    before=st.integers(1, 6),
    asked=st.lists(st.tuples(st.integers(1, 25), st.integers(1, 7)), max_size=4),
    max_steps=st.one_of(st.just(-1), st.integers(4, 25)),
)
def test_any_changes_against_the_rule(
    samples: int,
    before: int,
    asked: list[tuple[int, int]],
    max_steps: int,
    tmp_path: Path,
) -> None:
    script = {step: [set_to(ACCUMULATION, value)] for step, value in asked}
    run = train(
        tmp_path,
        script,
        samples=samples,
        gradient_accumulation_steps=before,
        max_steps=max_steps,
        logging_strategy="no",
    )
    made = {
        each.step: [
            cast("int", other.applied[0].new.value)
            for other in run.steer.made
            if other.step == each.step
        ]
        for each in run.steer.made
    }
    accumulation, here = before, Position(0, 0, samples)
    chunks: list[int] = []
    while len(chunks) < run.trainer.state.global_step:
        size = chunk(here, accumulation)
        chunks.append(size)
        here = Position(here.epoch, here.consumed + size, samples)
        for value in made.get(len(chunks), []):
            assert opens(here, value)
            accumulation = value
        here = here.normalised(samples)
    assert run.steer.chunks == chunks
    for epoch in run.epochs(samples):
        assert len(set(epoch)) == len(epoch), "no sample twice in an epoch"
    if max_steps > 0:
        assert len(chunks) == max_steps
    else:
        assert [sorted(epoch) for epoch in run.epochs(samples)] == [list(range(samples))] * 2
        assert run.trainer.state.max_steps == len(chunks)


def test_a_run_of_so_many_steps_goes_on_for_as_many_epochs_as_it_takes(tmp_path: Path) -> None:
    begun: list[float] = []

    class Epochs(TrainerCallback):
        def on_epoch_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            begun.append(state.epoch)

    trainer, steer = build(
        tmp_path, {2: [set_to(ACCUMULATION, 8)]}, gradient_accumulation_steps=2, max_steps=12
    )
    trainer.add_callback(Epochs())
    trainer.train()
    assert trainer.state.global_step == trainer.state.max_steps == 12
    assert steer.chunks == [2, 2, 2, 2, 8, 6, 8, 8, 6, 8, 8, 6]
    assert begun == [0.0, 1.0, 2.0]
    assert steer.rates == pytest.approx([0.1 * (1 - step / 12) for step in range(12)])


def test_several_changes_a_release_and_a_factor(tmp_path: Path) -> None:
    run = train(
        tmp_path,
        {
            1: [Multiply(ACCUMULATION, 2)],
            3: [set_to(GLOBAL, 2)],
            6: [Release(GLOBAL)],
        },
        gradient_accumulation_steps=2,
        per_device_train_batch_size=1,
    )
    assert not run.steer.refused
    assert [(each.step, each.applied[0].change.parameter) for each in run.steer.made] == [
        (2, ACCUMULATION),
        (3, GLOBAL),
        (6, GLOBAL),
    ]
    assert run.steer.chunks[:7] == [2, 2, 4, 2, 2, 2, 2]
    assert [sorted(epoch) for epoch in run.epochs(SAMPLES)] == [ALL, ALL]


def test_what_can_not_be_is_refused_with_what_can(tmp_path: Path) -> None:
    run = train(
        tmp_path,
        {
            1: [set_to(ACCUMULATION, 0)],
            2: [set_to(ACCUMULATION, 2.5)],  # type: ignore[arg-type]  # as a caller may
            3: [set_to(GLOBAL, 7)],
            4: [set_to(ACCUMULATION, 9)],
        },
        gradient_accumulation_steps=2,
        per_device_train_batch_size=4,
        samples=44,
        num_train_epochs=1,
    )
    reasons = [(each.reason, each.value_in_force) for each in run.steer.refused]
    assert reasons == [
        ("OUT_OF_BOUNDS", 2),
        ("INVALID_TYPE", 2),
        ("NOT_DIVISIBLE", 8),
        ("NEVER_ALIGNED", 2),
    ]
    assert "4 or 8" in run.steer.refused[2].message
    assert "8" in run.steer.refused[3].message
    assert run.steer.chunks == [2, 2, 2, 2, 2, 1]


def test_undone_to_the_bit(tmp_path: Path) -> None:
    """A change that fails after this one takes it back: steps, schedule and all."""
    args: dict[str, Any] = {"gradient_accumulation_steps": 4}
    plain = train(tmp_path, **args)
    run = train(
        tmp_path,
        {2: [set_to(ACCUMULATION, 2), set_to("learning_rate", -1)]},
        **args,
    )
    assert [each.reason for each in run.steer.refused] != []
    assert run.steer.chunks == plain.steer.chunks
    assert run.steer.rates == plain.steer.rates
    run.assert_same(plain)


def test_trained_again_it_begins_with_what_the_script_asked_for(tmp_path: Path) -> None:
    trainer, steer = build(tmp_path, {2: [set_to(ACCUMULATION, 2)]}, gradient_accumulation_steps=4)
    trainer.train()
    assert trainer.args.gradient_accumulation_steps == 2
    steer.chunks.clear()
    trainer.train()
    assert steer.chunks == [4, 4, 4, 4, 4, 2] * 2
    trainer.args.gradient_accumulation_steps = 11
    steer.chunks.clear()
    trainer.train()
    assert steer.chunks == [11, 11] * 2


def test_a_trainer_is_made_ready_once(tmp_path: Path) -> None:
    trainer, _ = build(tmp_path, ready=False)
    before = dict(vars(trainer))
    prepare(trainer)
    wrapped = dict(vars(trainer))
    prepare(trainer)
    assert vars(trainer) == wrapped != before


def test_an_argument_that_is_not_passed_has_its_default(tmp_path: Path) -> None:
    trainer, _ = build(tmp_path)
    unlike: Any = trainer
    unlike.doubled = lambda number=2: 2 * number
    WrappedLoop(trainer)._wrap("doubled", lambda call, given: (call(), given["number"]))
    assert unlike.doubled() == (4, 2)


class Stream(torch.utils.data.IterableDataset[dict[str, torch.Tensor]]):
    """Points of which nobody knows how many there are."""

    def __init__(self, count: int) -> None:
        self._points = Numbered(count)

    def __iter__(self) -> Any:
        return (self._points[index] for index in range(len(self._points)))


@pytest.mark.parametrize(
    ("script", "chunks"),
    [
        ({2: 4}, [2, 2, 4, 4, 4, 4, 4, 4]),
        ({2: 1, 6: 2}, [2, 2, 1, 1, 1, 1, 2, 2]),
        ({2: 3}, [2] * 8),
    ],
)
def test_data_without_a_known_length(
    script: dict[int, int], chunks: list[int], tmp_path: Path
) -> None:
    run = train(
        tmp_path,
        {step: [set_to(ACCUMULATION, value)] for step, value in script.items()},
        train_dataset=Stream(40),
        gradient_accumulation_steps=2,
        max_steps=8,
    )
    assert run.steer.chunks == chunks
    assert [each.reason for each in run.steer.refused] == (
        ["NOT_ALIGNED"] if 3 in script.values() else []
    )
    assert [number for batch in run.seen for number in batch] == list(range(sum(chunks)))
    for mine, plain in zip(run.weights, with_torch_alone(run, 40, chunks), strict=True):
        assert torch.equal(mine, plain)


@pytest.mark.parametrize("method", ["sft", "grpo", pytest.param("rloo", marks=pytest.mark.long)])
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_a_method_is_as_a_script_without_us(method: str, tmp_path: Path) -> None:
    """Where it grows, and the last planned epoch does not end first, transformers can do it."""

    class Plain(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step == 4:
                args.gradient_accumulation_steps = 4

    args = {
        "samples": 64,
        "max_steps": 8,
        "gradient_accumulation_steps": 2,
        "per_device_train_batch_size": 4 if method in {"grpo", "rloo"} else 2,
    }
    plain = build_trainer(method, tmp_path / "plain", **args)
    plain.add_callback(Plain())
    plain.train()
    live = build_trainer(method, tmp_path / "live", **args)
    steer = Steer({3: [set_to(ACCUMULATION, 4)]})
    steer.trainer = live
    prepare(live)
    live.add_callback(steer)
    live.train()
    assert [made.step for made in steer.made] == [4]
    assert steer.chunks == [2, 2, 2, 2, 4, 4, 4, 4]
    assert not steer.problems
    outcome(live).assert_same(outcome(plain))


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_generated_samples_are_used_up_first(tmp_path: Path) -> None:
    trainer = build_trainer(
        "grpo",
        tmp_path,
        samples=32,
        max_steps=8,
        gradient_accumulation_steps=1,
        steps_per_generation=4,
    )
    steer = Steer({2: [set_to(ACCUMULATION, 2)]})
    steer.trainer = trainer
    prepare(trainer)
    trainer.add_callback(steer)
    trainer.train()
    assert [made.step for made in steer.made] == [4], "two more of the four generated are left"
    assert steer.chunks == [1, 1, 1, 1, 2, 2, 2, 2]
