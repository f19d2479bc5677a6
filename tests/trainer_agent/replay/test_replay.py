"""Replaying a file in real trainers, against runs that were steered: equal to the bit."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from control_plane.cli import export
from midcourse.control.v1 import control_pb2, job_pb2, update_pb2
from midcourse.link.v1 import link_pb2
from tests.support.plain_trainer import plain_trainer
from tests.support.scripted_link import (
    LinkScript,
    delivery,
    multiply_change,
    ramp_change,
    set_change,
)
from tests.support.tiny_runs import run
from trainer_agent import Protection, attach
from trainer_agent.replay import ReplayLink, replay_link_factory
from trainer_agent.steering.links import LinkFactory

HOLD = set_change(4e-4, update_pb2.SET_MODE_HOLD, 2)


def schedule_change() -> update_pb2.Change:
    change = update_pb2.Change(parameter="learning_rate")
    change.schedule.shape = update_pb2.SCHEDULE_SHAPE_COSINE
    change.schedule.peak, change.schedule.warmup_steps, change.schedule.floor = 3e-4, 1, 1e-6
    return change


STEERED: dict[int, Sequence[link_pb2.AgentMessage]] = {
    2: [delivery(1, ramp_change(5e-4, 3)), delivery(2, schedule_change(), at_step=8)],
    4: [delivery(3, HOLD), delivery(4, multiply_change(0.5))],
    7: [delivery(5, set_change(1e-4))],
}
"""What is done to a run, by optimizer steps done."""


def exported(script: LinkScript, method: str = "") -> export.Recipe:
    """Return what the control plane would export of a run."""
    updates = {
        message.delivery.update.revision: message.delivery.update
        for messages in STEERED.values()
        for message in messages
    }
    for outcome in script.link.outcomes:
        updates[outcome.revision].applied.CopyFrom(outcome.applied)
    job = job_pb2.Job(name="jobs/job", method=method)
    return export.recipe(job, updates.values(), list[control_pb2.LineageSpan]())


def trained(directory: Path, link_factory: LinkFactory, **args: Any) -> dict[str, Any]:
    """Train the light trainer and return weights and logs."""
    resume = args.pop("resume", None)
    trainer = plain_trainer(directory, **args)
    attach(trainer, "job", link_factory=link_factory)
    trainer.train(resume_from_checkpoint=resume)
    model: Any = trainer.model
    return {
        "weight": model.linear.weight.detach().clone(),
        "logs": {
            entry["step"]: (entry["loss"], entry["learning_rate"])
            for entry in trainer.state.log_history
            if "loss" in entry
        },
    }


def assert_same(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert one["logs"] == other["logs"]
    assert torch.equal(one["weight"], other["weight"])


@pytest.mark.parametrize("written", [export.to_yaml, export.to_json])
def test_a_replay_is_the_steered_run_to_the_bit(written: Any, tmp_path: Path) -> None:
    script = LinkScript(STEERED)
    steered = trained(tmp_path / "steered", script)
    recipe = tmp_path / "run.yaml"
    recipe.write_text(written(exported(script)), encoding="utf-8")
    assert_same(trained(tmp_path / "replay", replay_link_factory(recipe)), steered)
    plain = trained(tmp_path / "plain", LinkScript())
    assert not torch.equal(plain["weight"], steered["weight"])


# TRL itself still reads what transformers has deprecated.
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
@pytest.mark.parametrize("method", ["sft", "dpo", "grpo"])
def test_a_replay_of_a_method_of_trl_is_the_steered_run(method: str, tmp_path: Path) -> None:
    script = LinkScript(STEERED)
    steered = run(
        method, tmp_path / "steered", lambda trainer: attach(trainer, "job", link_factory=script)
    )
    recipe = tmp_path / "run.yaml"
    recipe.write_text(export.to_yaml(exported(script, method)), encoding="utf-8")

    replayed = run(
        method, tmp_path / "replay", lambda trainer: attach(trainer, "job", replay=recipe)
    )
    replayed.assert_same(steered)


def test_a_replay_goes_on_from_a_checkpoint(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    script = LinkScript(STEERED)
    steered = trained(tmp_path / "steered", script, save_strategy="steps", save_steps=5)
    recipe = tmp_path / "run.yaml"
    recipe.write_text(export.to_yaml(exported(script)), encoding="utf-8")
    caplog.set_level(logging.INFO, "trainer_agent.replay")
    resumed = trained(
        tmp_path / "resumed",
        replay_link_factory(recipe),
        resume=str(tmp_path / "steered" / "checkpoint-5"),
    )
    assert_same(resumed, steered)
    said = caplog.messages[-1]
    assert said.startswith("replayed 2 of 5 updates of "), said
    assert "3 more were in the checkpoint" in said


def recipe_of(tmp_path: Path, updates: list[dict[str, Any]], **more: Any) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(json.dumps({"version": 1, "updates": updates, **more}), encoding="utf-8")
    return path


def test_an_update_that_can_not_be_made_is_told_of_and_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = recipe_of(
        tmp_path,
        [
            {"step": 3, "changes": [{"parameter": "learning_rate", "set": -1.0}]},
            {"step": 4, "changes": [{"parameter": "magic", "set": 1}]},
            {"step": 5, "changes": [{"parameter": "learning_rate", "multiply": 0.5}]},
            {"step": 50, "changes": [{"parameter": "learning_rate", "multiply": 0.5}]},
        ],
        method="dpo",
    )
    caplog.set_level(logging.INFO, "trainer_agent.replay")
    result = trained(tmp_path, replay_link_factory(path), lr_scheduler_type="constant")
    rates = [rate for _, rate in result["logs"].values()]
    assert rates == [0.1] * 4 + [0.05] * 6
    said = "\n".join(caplog.messages)
    assert "changes magic for step 4, which this run can not do: it has no such parameter" in said
    assert "update 1 of" in said
    assert "update 2 of" in said
    assert "update 4 of" in said
    assert "training ended at step 10" in said
    assert "replayed 1 of 4 updates" in said
    assert "3 did not take effect" in said
    assert caplog.records[-1].levelno == logging.WARNING


@pytest.mark.long
def test_thousands_of_updates_are_replayed_a_few_at_a_time(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    steps = 1_300
    path = recipe_of(
        tmp_path,
        [
            {"step": step, "changes": [{"parameter": "learning_rate", "set": step * 1e-7}]}
            for step in range(2, steps + 1)
        ],
    )
    caplog.set_level(logging.INFO, "trainer_agent.replay")
    result = trained(tmp_path, replay_link_factory(path), max_steps=steps, logging_steps=100)
    assert result["logs"][steps][1] == steps * 1e-7
    assert caplog.messages == [f"replayed {steps - 1} of {steps - 1} updates of {path}"]


def test_the_file_is_read_before_training(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        replay_link_factory(tmp_path / "missing.yaml")
    path = recipe_of(tmp_path, [{"step": 3}])
    with pytest.raises(ValueError, match=r"recipe\.yaml:1:.*updates\[0\]: an update needs changes"):
        replay_link_factory(path)


def test_it_is_asked_for_at_once_and_goes_without_protection(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("version: 1\nupdates: []\n")
    trainer = plain_trainer(tmp_path)
    callback = attach(trainer, replay=file, protection=Protection(on_nonfinite_loss="pause"))
    assert callback.settings()["protection"] is None
    with pytest.raises(ValueError, match="attached already"):
        attach(trainer, replay=file)


def test_waiting_is_only_waiting(tmp_path: Path) -> None:
    link = replay_link_factory(recipe_of(tmp_path, []))(
        job_id="job", hello=link_pb2.TrainerHello, control_plane=""
    )
    assert isinstance(link, ReplayLink)
    link.start()
    link.wait(0.001)
    assert list(link.poll()) == []
    assert link.close()
    assert link.close()
