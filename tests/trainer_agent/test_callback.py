from __future__ import annotations

import json
import logging
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Trainer, TrainerCallback

from midcourse.control.v1 import update_pb2
from tests.support.plain_trainer import Points, plain_trainer
from tests.support.scripted_link import LinkScript, delivery, set_change, withdrawal
from tests.support.tiny_runs import AtStep, outcome
from trainer_agent import RuntimeParameterUpdateCallback, attach
from trainer_agent import callback as callback_module
from trainer_agent.identity import DEFAULT_CONTROL_PLANE
from trainer_agent.link.steps import StepBatch
from trainer_agent.ranks import met
from trainer_agent.steering.controller import ParameterController
from trainer_agent.steering.reporting import Reporter
from trainer_agent.steering.session import SteeringSession


@pytest.fixture(autouse=True)
def no_job_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("JOB_ID", raising=False)
    monkeypatch.delenv("MIDCOURSE_CONTROL_PLANE", raising=False)


def test_the_callback_alone_steers(tmp_path: Path) -> None:
    script = LinkScript({3: [delivery(1, set_change(0.01))]})
    callback = RuntimeParameterUpdateCallback("job", link_factory=script)
    trainer = plain_trainer(tmp_path, callbacks=[callback])
    trainer.train()
    assert script.link.outcomes[0].applied.step == 4
    assert script.link.metric("learning_rate")[4] == 0.01
    hello = script.link.first_hello
    assert hello is not None
    assert (hello.job_id, hello.method, hello.start_step) == ("job", "trainer", 0)
    assert hello.state.progress.max_steps == 10
    found = {each.name: each for each in hello.state.parameters}
    spec = found["learning_rate"]
    assert "attach the trainer" in found["gradient_accumulation_steps"].unavailable_reason
    assert spec.current_value.number == 0.1
    assert spec.operations
    assert callback.job_id == "job"


def test_the_end_is_told_and_the_link_closed(tmp_path: Path) -> None:
    script = LinkScript({8: [delivery(1, set_change(0.01), at_step=99)]})
    trainer = plain_trainer(tmp_path)
    attach(trainer, "job", link_factory=script)
    trainer.train()
    link = script.link
    assert link.sent[-1].finished.step == 10
    assert link.outcomes[-1].expired.cause == update_pb2.EXPIRY_CAUSE_JOB_ENDED
    assert link.closed == [None]
    assert [report.step for report in link.steps if report.HasField("epoch")] == list(range(1, 11))


def test_metrics_come_with_their_step_and_nan_as_it_is(tmp_path: Path) -> None:
    script = LinkScript()
    trainer = plain_trainer(tmp_path, logging_steps=5)
    attach(trainer, "job", link_factory=script)

    def poison(step: int, _optimizer: Any, _scheduler: Any) -> None:
        if step == 7:
            logs: Any = {"reward": math.nan, "tensor": torch.ones(1), "text": "no", "on": True}
            trainer.log(logs)

    trainer.add_callback(AtStep(poison))
    trainer.train()
    link = script.link
    assert link.metric("loss").keys() == {5, 10}
    assert link.metric("learning_rate").keys() == set(range(1, 11))
    assert {step: math.isnan(value) for step, value in link.metric("reward").items()} == {7: True}
    assert "train_loss" in {name for report in link.steps for name in report.names}
    for name in ("tensor", "text", "on", "epoch"):
        assert not link.metric(name)


def test_every_start_of_training_is_another_instance(tmp_path: Path) -> None:
    script = LinkScript()
    trainer = plain_trainer(tmp_path, max_steps=2)
    attach(trainer, "job", link_factory=script)
    trainer.train()
    trainer.train()
    hellos = [link.first_hello for link in script.links]
    assert len({hello.instance_id for hello in hellos if hello is not None}) == 2
    assert [link.closed for link in script.links] == [[None], [None]]


def test_training_that_begins_anew_says_goodbye_to_the_first(tmp_path: Path) -> None:
    """As after running out of memory, with auto_find_batch_size."""
    script = LinkScript()
    trainer = plain_trainer(tmp_path, max_steps=4)
    attach(trainer, "job", link_factory=script)

    class Stop(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step == 2 and len(script.links) == 1:
                raise InterruptedError

    trainer.add_callback(Stop())
    with pytest.raises(InterruptedError):
        trainer.train()
    assert script.links[0].closed == []
    trainer.train()
    assert script.links[0].closed == ["training began anew"]
    assert script.links[1].closed == [None]


def test_given_up_before_the_end_it_says_goodbye(tmp_path: Path) -> None:
    script = LinkScript()
    callback = RuntimeParameterUpdateCallback("job", link_factory=script)
    trainer = plain_trainer(tmp_path)
    state, args, control = trainer.state, trainer.args, trainer.control
    trainer.create_optimizer_and_scheduler(10)
    callback.on_train_begin(
        args, state, control, optimizer=trainer.optimizer, lr_scheduler=trainer.lr_scheduler
    )
    del callback
    assert script.link.closed == ["it ended before training had"]


def test_an_early_stop_takes_back_what_no_step_used(tmp_path: Path) -> None:
    script = LinkScript({4: [delivery(1, set_change(0.5))]})

    class Stop(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step == 4:
                control.should_training_stop = True

    trainer = plain_trainer(tmp_path)
    attach(trainer, "job", link_factory=script)
    trainer.add_callback(Stop())
    trainer.train()
    assert script.link.outcomes[0].expired.cause == update_pb2.EXPIRY_CAUSE_JOB_ENDED
    assert trainer.optimizer is not None
    assert trainer.optimizer.param_groups[0]["lr"] != 0.5


def test_the_last_checkpoint_holds_no_change_that_no_step_will_use(tmp_path: Path) -> None:
    script = LinkScript({10: [delivery(1, set_change(0.5))]})
    trainer = plain_trainer(tmp_path, save_strategy="steps", save_steps=10)
    attach(trainer, "job", link_factory=script)
    trainer.train()
    assert script.link.outcomes[0].expired.cause == update_pb2.EXPIRY_CAUSE_JOB_ENDED
    saved = json.loads((tmp_path / "checkpoint-10" / "trainer_state.json").read_text())
    state = saved["stateful_callbacks"]["RuntimeParameterUpdateCallback"]["steering"]["controller"]
    assert state["lineage"]["in_force"] == []
    assert state["unverified"] == []


def test_messages_that_it_does_not_need_are_passed_over(tmp_path: Path) -> None:
    from midcourse.link.v1 import link_pb2

    script = LinkScript(
        {
            1: [
                link_pb2.AgentMessage(),
                link_pb2.AgentMessage(detached=link_pb2.Detached(reason="X", message="x")),
                delivery(1, set_change(0.01), at_step=9),
                withdrawal(1),
            ],
            2: [link_pb2.AgentMessage(stored=link_pb2.OutcomesStored(revisions=[1]))],
        }
    )
    trainer = plain_trainer(tmp_path)
    attach(trainer, "job", link_factory=script)
    trainer.train()
    assert [each.WhichOneof("result") for each in script.link.outcomes] == ["withdrawn"]
    assert not script.link.hello().state.outcomes
    assert not script.link.faults


class BrokenError(RuntimeError):
    """Something of ours is broken."""


def broken(*_: Any, **__: Any) -> Any:
    raise BrokenError("broken on purpose")


FAILURES: dict[str, tuple[object, str]] = {
    "on_train_begin": (RuntimeParameterUpdateCallback, "_open_session"),
    "on_train_begin: start": (SteeringSession, "start"),
    "on_train_begin: parameters": (ParameterController, "__init__"),
    "on_optimizer_step": (ParameterController, "optimizer_stepped"),
    "on_step_end": (ParameterController, "at_boundary"),
    "on_step_end: poll": (SteeringSession, "_take"),
    "on_step_end: send": (Reporter, "step_done"),
    "reporting steps together": (StepBatch, "take"),
    "on_log": (SteeringSession, "log"),
    "on_train_end": (ParameterController, "finish"),
    "on_train_end: close": (SteeringSession, "close"),
    "on_train_end: detach": (ParameterController, "detach"),
    "state": (ParameterController, "state_dict"),
    "the report of a failure": (ParameterController, "switch_off"),
}


@pytest.fixture(scope="module")
def unwatched(tmp_path_factory: pytest.TempPathFactory) -> Any:
    trainer = plain_trainer(tmp_path_factory.mktemp("plain"), save_strategy="steps", save_steps=5)
    trainer.train()
    return outcome(trainer)


@pytest.mark.parametrize("name", FAILURES)
def test_what_fails_in_a_hook_never_reaches_the_loop(
    name: str,
    unwatched: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    owner, attribute = FAILURES[name]
    monkeypatch.setattr(owner, attribute, broken)
    if name == "the report of a failure":
        monkeypatch.setattr(ParameterController, "at_boundary", broken)
    script = LinkScript({3: [delivery(1, set_change(0.01), at_step=99)]})
    trainer = plain_trainer(tmp_path, save_strategy="steps", save_steps=5)
    attach(trainer, "job", link_factory=script)
    with caplog.at_level(logging.ERROR, "trainer_agent"):
        trainer.train()
    outcome(trainer).assert_same(unwatched)
    logged = [each for each in caplog.records if "training goes on" in each.getMessage()]
    assert len({each.getMessage() for each in logged}) == len(logged) > 0, "once, and not never"
    hook = name.partition(":")[0]
    if hook in {"on_optimizer_step", "on_step_end", "on_log", "state"}:
        (fault,) = script.link.faults
        assert fault.component == hook
        assert "BrokenError: broken on purpose" in fault.message
        assert script.link.sent[-1].HasField("finished")
    if hook == "reporting steps together":  # in whichever hook that is tried again
        assert script.link.faults[0].component == "on_step_end"
        assert script.link.sent[-1].HasField("finished")


def test_a_failure_ends_steering(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SteeringSession, "log", broken)
    script = LinkScript({5: [delivery(1, set_change(0.01))]})
    trainer = plain_trainer(tmp_path)
    attach(trainer, "job", link_factory=script)
    trainer.train()
    rejected = script.link.outcomes[0].rejected
    assert rejected.reason == "STEERING_SWITCHED_OFF"
    assert "on_log failed: BrokenError" in rejected.message


def test_a_checkpoint_that_does_not_fit_ends_steering_and_not_training(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    hold = set_change(0.01, update_pb2.SET_MODE_HOLD)
    args: dict[str, Any] = {"save_strategy": "steps", "save_steps": 5}
    first = plain_trainer(tmp_path, **args)
    attach(first, "job", link_factory=LinkScript({3: [delivery(1, hold)]}))
    first.train()

    script = LinkScript()
    second = plain_trainer(tmp_path, **args)
    second.create_optimizer()
    optimizer: Any = second.optimizer
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 100)
    resumed = Trainer(
        model=second.model,
        args=second.args,
        train_dataset=Points(),
        optimizers=(optimizer, scheduler),  # type: ignore[arg-type]  # any scheduler will do
    )
    attach(resumed, "job", link_factory=script)
    with caplog.at_level(logging.ERROR, "trainer_agent"):
        resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-5"))
    assert resumed.state.global_step == 10
    (fault,) = script.link.faults
    assert "the learning rate was steered over LambdaLR" in fault.message


def test_my_new_learning_rate_is_not_ignored_on_resume(tmp_path: Path) -> None:
    """What a script's new argument can not do: the optimizer's state in the checkpoint wins."""
    args: dict[str, Any] = {"save_strategy": "steps", "save_steps": 5}
    plain_trainer(tmp_path, **args).train()

    def resumed(learning_rate: float, script: LinkScript) -> LinkScript:
        trainer = plain_trainer(tmp_path, learning_rate=learning_rate, save_strategy="no")
        attach(trainer, "job", link_factory=script)
        trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-5"))
        return script

    ignored = resumed(0.001, LinkScript())
    heard = resumed(0.001, LinkScript({6: [delivery(1, set_change(0.001))]}))
    assert ignored.link.metric("learning_rate")[7] == pytest.approx(0.1 * 4 / 10)
    assert heard.link.metric("learning_rate")[7] == 0.001
    assert heard.link.outcomes[0].applied.step == 7


@pytest.mark.parametrize("argument", [0.1, 0.7])
def test_a_learning_rate_that_was_steered_goes_on_whatever_the_script_says(
    argument: float, tmp_path: Path
) -> None:
    args: dict[str, Any] = {"save_strategy": "steps", "save_steps": 5}
    first = LinkScript({3: [delivery(1, set_change(0.01))]})
    trainer = plain_trainer(tmp_path, **args)
    attach(trainer, "job", link_factory=first)
    trainer.train()
    again = LinkScript()
    trainer = plain_trainer(tmp_path, learning_rate=argument)
    attach(trainer, "job", link_factory=again)
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-5"))
    went_on = again.link.metric("learning_rate")
    assert went_on == {
        step: rate for step, rate in first.link.metric("learning_rate").items() if step > 5
    }


def test_ranks_that_can_not_agree_are_watched_and_not_steered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = LinkScript({3: [delivery(1, set_change(0.01))]})
    trainer = plain_trainer(tmp_path)
    attach(trainer, "job", link_factory=script)
    monkeypatch.setattr(callback_module, "met", lambda *_: met(0, 2))
    trainer.train()
    hello = script.link.first_hello
    assert hello is not None
    assert "several ranks" in hello.state.parameters[0].unavailable_reason
    assert not hello.state.parameters[0].operations
    assert not hello.state.actions
    assert script.link.outcomes[0].rejected.reason == "SEVERAL_RANKS"
    assert script.link.metric("loss").keys() == set(range(1, 11))


def test_other_ranks_have_no_link(tmp_path: Path) -> None:
    script = LinkScript()
    trainer = plain_trainer(tmp_path)
    attach(trainer, "job", link_factory=script)
    trainer.is_world_process_zero = lambda: False  # type: ignore[method-assign]
    trainer.train()
    assert not script.links


def test_a_readable_job_id_is_made_up_logged_and_kept_in_the_checkpoint(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    args: dict[str, Any] = {"save_strategy": "steps", "save_steps": 5}
    random_state = torch.random.get_rng_state()
    script = LinkScript()
    trainer = plain_trainer(tmp_path, **args)
    callback = attach(trainer, link_factory=script)
    assert torch.equal(random_state, torch.random.get_rng_state()) or callback.job_id is None
    with caplog.at_level(logging.INFO, "trainer_agent"):
        trainer.train()
    job = callback.job_id
    assert job is not None
    assert job.startswith("trainer-")
    (line,) = [each.getMessage() for each in caplog.records if "midcourse watch" in each.message]
    assert f"midcourse watch {job}" in line

    again = plain_trainer(tmp_path, **args)
    second = attach(again, link_factory=LinkScript())
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-5"))
    assert second.job_id == job


def test_job_and_address_come_from_argument_environment_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def settings(callback: RuntimeParameterUpdateCallback) -> tuple[Any, ...]:
        found = callback.settings()
        return found["job"], found["control_plane"], found["labels"]

    assert settings(RuntimeParameterUpdateCallback()) == (None, DEFAULT_CONTROL_PLANE, {})
    monkeypatch.setenv("JOB_ID", "from-environment")
    monkeypatch.setenv("MIDCOURSE_CONTROL_PLANE", "elsewhere:1")
    assert settings(RuntimeParameterUpdateCallback()) == ("from-environment", "elsewhere:1", {})
    given = RuntimeParameterUpdateCallback("given", "here:2", {"team": "nlp"})
    assert settings(given) == ("given", "here:2", {"team": "nlp"})
    monkeypatch.setenv("JOB_ID", "Not Good")
    with pytest.raises(ValueError, match=r"environment variable JOB_ID must be .* got 'Not Good'"):
        RuntimeParameterUpdateCallback()


def test_attach_twice_is_attach_once(tmp_path: Path) -> None:
    trainer = plain_trainer(tmp_path)
    first = attach(trainer, "job")
    assert attach(trainer) is first
    assert attach(trainer, "job") is first
    callbacks = trainer.callback_handler.callbacks
    assert [each for each in callbacks if isinstance(each, RuntimeParameterUpdateCallback)] == [
        first
    ]
    with pytest.raises(ValueError, match="attached already"):
        attach(trainer, "another")


def test_attach_wants_a_trainer() -> None:
    with pytest.raises(TypeError, match="got a dict"):
        attach({})


def test_attach_wants_a_good_job_id(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="job must be 1 to 63 of"):
        attach(plain_trainer(tmp_path), "No Good")
