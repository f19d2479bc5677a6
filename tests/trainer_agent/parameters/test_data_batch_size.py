"""Batch sizes changed between two epochs of real trainers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainerCallback

from tests.trainer_agent.parameters.data_runs import (
    ACCUMULATION,
    BATCH,
    GLOBAL,
    Recorder,
    SummingRecorder,
    Trained,
    build,
    set_to,
    train,
    with_torch_alone,
)
from tests.trainer_agent.parameters.test_data_accumulation import ALL, SAMPLES

ARGS: dict[str, Any] = {"gradient_accumulation_steps": 4, "num_train_epochs": 3}


def flat(run: Trained) -> list[int]:
    return [number for batch in run.seen for number in batch]


@pytest.mark.parametrize("model", [Recorder, SummingRecorder])
def test_is_what_plain_torch_comes_to(model: type[Recorder], tmp_path: Path) -> None:
    run = train(tmp_path, {2: [set_to(BATCH, 4)]}, model=model, **ARGS)
    chunks = [4, 4, 4, 4, 4, 2, 4, 2, 4, 2]
    assert [(made.step, made.epoch) for made in run.steer.made] == [(6, 1.0)]
    assert run.steer.chunks == chunks
    assert [sorted(epoch) for epoch in run.epochs(SAMPLES)] == [ALL] * 3
    assert [len(batch) for batch in run.seen] == [1] * 22 + [4, 4, 4, 4, 4, 2] * 2
    for mine, plain in zip(run.weights, with_torch_alone(run, SAMPLES, chunks), strict=True):
        assert torch.equal(mine, plain)
    # Epochs draw their samples as those of a run that has this size from the start.
    other = train(tmp_path, per_device_train_batch_size=4, **ARGS)
    assert flat(run)[SAMPLES:] == flat(other)[SAMPLES:]
    assert run.trainer.state.max_steps == len(chunks)
    assert run.trainer.state.train_batch_size == 4
    assert run.steer.epochs[-3:] == [1.0 + 6 / 6, 2.0 + 4 / 6, 3.0]
    assert run.steer.rates[6:] == pytest.approx([0.1 * 2 / 3 * left / 4 for left in (4, 3, 2, 1)])


@pytest.mark.parametrize(
    "args",
    [
        {"dataloader_num_workers": 1, "dataloader_persistent_workers": True},
        {"dataloader_drop_last": True},
        {"train_sampling_strategy": "sequential"},
        {"accelerator_config": {"use_seedable_sampler": False}},
    ],
    ids=["workers", "drop-last", "sequential", "unseeded"],
)
def test_other_loaders(args: dict[str, Any], tmp_path: Path) -> None:
    run = train(tmp_path, {2: [set_to(BATCH, 4)], 8: [set_to(ACCUMULATION, 1)]}, **ARGS, **args)
    sizes = [len(batch) for batch in run.seen]
    if "dataloader_drop_last" in args:
        assert sizes == [1] * 22 + [4] * 10
        assert run.steer.chunks == [4, 4, 4, 4, 4, 2, 4, 1, 1, 1, 1, 1, 1]
    else:
        assert sizes == [1] * 22 + [4, 4, 4, 4, 4, 2] * 2
        assert run.steer.chunks == [4, 4, 4, 4, 4, 2, 4, 2, 1, 1, 1, 1, 1, 1]
        assert [sorted(epoch) for epoch in run.epochs(SAMPLES)] == [ALL] * 3
    assert run.trainer.state.max_steps == run.trainer.state.global_step
    accelerator: Any = run.trainer.accelerator
    assert len(accelerator._dataloaders) == 1, "the first loader is kept by nothing of ours"


def test_the_callbacks_see_the_loader_that_is_used(tmp_path: Path) -> None:
    lengths: list[int] = []

    class Look(TrainerCallback):
        def on_step_end(
            self, args: Any, state: Any, control: Any, train_dataloader: Any = None, **_: Any
        ) -> None:
            lengths.append(len(train_dataloader))

    trainer, _ = build(tmp_path, {2: [set_to(BATCH, 4)]}, **ARGS)
    trainer.add_callback(Look())
    trainer.train()
    assert lengths == [22] * 6 + [6] * 4


def test_a_run_of_so_many_steps_keeps_them(tmp_path: Path) -> None:
    run = train(
        tmp_path,
        {2: [set_to(BATCH, 4)]},
        gradient_accumulation_steps=4,
        max_steps=11,
    )
    assert run.steer.chunks == [4, 4, 4, 4, 4, 2, 4, 2, 4, 2, 4]
    assert run.trainer.state.global_step == 11


def test_batch_size_and_accumulation_in_one_update_keep_the_global_batch_size(
    tmp_path: Path,
) -> None:
    run = train(tmp_path, {2: [set_to(BATCH, 2), set_to(ACCUMULATION, 2)]}, **ARGS)
    (made,) = run.steer.made
    assert made.epoch == 1.0
    assert run.steer.parameters[GLOBAL].read().value == 4
    assert run.steer.chunks == [4, 4, 4, 4, 4, 2] + [2, 2, 2, 2, 2, 1] * 2
    assert run.trainer.state.max_steps == 18
    assert run.steer.rates == pytest.approx([0.1 * (18 - step) / 18 for step in range(18)])


def test_undone_to_the_bit(tmp_path: Path) -> None:
    plain = train(tmp_path, **ARGS)
    run = train(tmp_path, {6: [set_to(BATCH, 4), set_to("learning_rate", "no")]}, **ARGS)  # type: ignore[arg-type]  # as a caller may
    assert len(run.steer.refused) == 1
    assert flat(run) == flat(plain)
    run.assert_same(plain)


def test_more_than_there_are_samples_is_refused(tmp_path: Path) -> None:
    run = train(tmp_path, {2: [set_to(BATCH, 40)]}, dataloader_drop_last=True, **ARGS)
    (refused,) = run.steer.refused
    assert refused.reason == "READ_BACK_DIFFERS"
    assert "0 batches" in refused.message
    assert run.trainer.args.per_device_train_batch_size == 1
    assert [len(batch) for batch in run.seen] == [1] * 66
