"""Runs whose data flow was changed, resumed from every checkpoint, against ones that were not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import TrainerCallback

from tests.trainer_agent.parameters.data_runs import (
    ACCUMULATION,
    BATCH,
    Script,
    build,
    set_to,
    train,
)
from trainer_agent.parameters.data import loop
from trainer_agent.parameters.data.saved import read_checkpoint

SAVE: dict[str, Any] = {"save_strategy": "steps", "save_steps": 1}

CASES: dict[str, tuple[Script, dict[str, Any]]] = {
    "smaller": ({2: [set_to(ACCUMULATION, 2)]}, {"gradient_accumulation_steps": 4}),
    "larger": ({2: [set_to(ACCUMULATION, 4)]}, {"gradient_accumulation_steps": 2}),
    "more-epochs-than-planned": (
        {2: [set_to(ACCUMULATION, 8)]},
        {"gradient_accumulation_steps": 2, "max_steps": 12},
    ),
    "batch-size-then-accumulation": (
        {2: [set_to(BATCH, 4)], 7: [set_to(ACCUMULATION, 2)]},
        {"gradient_accumulation_steps": 4, "num_train_epochs": 3},
    ),
}


# It grows over the end of the planned epochs, too.
@pytest.mark.parametrize(
    "name",
    [pytest.param(each, marks=pytest.mark.long if each == "larger" else ()) for each in CASES],
)
def test_resumed_is_as_uninterrupted(name: str, tmp_path: Path) -> None:
    script, args = CASES[name]
    whole = train(tmp_path, script, **args, **SAVE)
    changed = whole.steer.made[-1].step
    ends = [step for step, epoch in enumerate(whole.steer.epochs, 1) if epoch == int(epoch)]
    for step in sorted({changed, changed + 1, *ends[:-1]}):
        left = {
            due: changes
            for due, changes in script.items()
            if not any(
                made.step <= step and made.applied[0].change in changes for made in whole.steer.made
            )
        }
        checkpoint = str(tmp_path / f"checkpoint-{step}")
        resumed = train(tmp_path / f"from-{step}", left, resume=checkpoint, **args, **SAVE)
        assert resumed.steer.chunks == whole.steer.chunks[step:], step
        assert resumed.steer.rates == whole.steer.rates[step:]
        assert resumed.steer.epochs == whole.steer.epochs[step:]
        assert resumed.seen == whole.seen[sum(whole.steer.chunks[:step]) :]
        assert resumed.trainer.state.max_steps == whole.trainer.state.max_steps
        resumed.assert_same(whole)


def test_data_in_hand_is_taken_again_by_a_run_resumed_from_there(tmp_path: Path) -> None:
    """A run that is held in front of a step saves with the data of that step taken."""
    args: dict[str, Any] = {"gradient_accumulation_steps": 4, "save_strategy": "no"}
    trainer, steer = build(tmp_path, {2: [set_to(ACCUMULATION, 2)]}, **args)
    model: Any = trainer.model

    class Save(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step == 4:
                trainer._save_checkpoint(model, trial=None)

    trainer.add_callback(Save())
    trainer.train()
    checkpoint = str(tmp_path / "checkpoint-4")
    resumed = train(tmp_path / "again", resume=checkpoint, **args)
    assert resumed.steer.chunks == steer.chunks[4:]
    assert resumed.seen == model.seen[sum(steer.chunks[:4]) :]


def test_without_a_change_the_checkpoint_holds_nothing_of_it(tmp_path: Path) -> None:
    args = {"gradient_accumulation_steps": 4, **SAVE}
    whole = train(tmp_path, **args)
    state = json.loads((tmp_path / "checkpoint-8" / "trainer_state.json").read_text("utf-8"))
    saved = state["stateful_callbacks"]["Steer"]["steering"]["controller"]["parameters"]
    assert not saved[ACCUMULATION]
    resumed = train(tmp_path / "again", resume=str(tmp_path / "checkpoint-8"), **args)
    resumed.assert_same(whole)


def test_a_script_that_asks_for_more_epochs_gets_them(tmp_path: Path) -> None:
    args: dict[str, Any] = {"gradient_accumulation_steps": 4, **SAVE}
    train(tmp_path, {2: [set_to(ACCUMULATION, 2)]}, **args)
    resumed = train(
        tmp_path / "longer",
        resume=str(tmp_path / "checkpoint-15"),
        num_train_epochs=3,
        **args,
    )
    assert resumed.trainer.state.max_steps == resumed.trainer.state.global_step == 2 + 7 + 11 + 11
    assert resumed.steer.epochs[-1] == 3.0


def test_the_data_may_be_read_from_its_beginning_again(tmp_path: Path) -> None:
    args: dict[str, Any] = {"gradient_accumulation_steps": 4, "max_steps": 12, **SAVE}
    train(tmp_path, {2: [set_to(ACCUMULATION, 2)]}, **args)
    resumed = train(
        tmp_path / "again",
        resume=str(tmp_path / "checkpoint-5"),
        ignore_data_skip=True,
        **args,
    )
    assert resumed.steer.chunks == [2] * 7


def test_data_that_has_grown(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    args: dict[str, Any] = {"gradient_accumulation_steps": 4, **SAVE}
    train(tmp_path, {2: [set_to(ACCUMULATION, 2)]}, **args)
    resumed = train(tmp_path / "grown", samples=44, resume=str(tmp_path / "checkpoint-5"), **args)
    assert "the epoch had 22 micro-batches" in caplog.text
    assert resumed.steer.chunks == [2] * ((44 - 28) // 2 + 22)
    assert resumed.steer.epochs[-1] == 2.0


def test_a_damaged_position_is_told_and_stops_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    args: dict[str, Any] = {"gradient_accumulation_steps": 4, **SAVE}
    train(tmp_path, {2: [set_to(ACCUMULATION, 2)]}, **args)
    path = tmp_path / "checkpoint-5" / "trainer_state.json"
    path.write_text(path.read_text("utf-8").replace('"consumed"', '"lost"'), "utf-8")
    trainer, _ = build(tmp_path / "again", **args)
    with pytest.raises(ValueError, match="was not restored"):
        trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-5"))
    assert "damaged" in caplog.text


@pytest.mark.parametrize(
    "state",
    ["[]", '{"stateful_callbacks": null}', '{"stateful_callbacks": {"a": null, "b": [[]]}}'],
)
def test_a_checkpoint_that_holds_nothing_of_it_may_have_any_shape(
    state: str, tmp_path: Path
) -> None:
    """Transformers goes on from these, or says itself what is wrong."""
    (tmp_path / "trainer_state.json").write_text(state, "utf-8")
    assert read_checkpoint(str(tmp_path)) is None


def test_whatever_fails_in_reading_it_is_told_and_stops_nothing(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(_: str) -> None:
        raise AttributeError("broken on purpose")

    monkeypatch.setattr(loop, "read_checkpoint", broken)
    assert loop._read("checkpoint-5") is None
    assert "checkpoint-5 was saved can not be read" in caplog.text
    assert "broken on purpose" in caplog.text
