"""Pause, resume, save, evaluate and stop, against a real trainer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Trainer, TrainerCallback

from midcourse.agent.v1 import session_pb2
from midcourse.control.v1 import update_pb2
from midcourse.link.v1 import link_pb2
from tests.support.plain_trainer import Points, plain_trainer
from tests.support.scripted_link import (
    LinkScript,
    delivery,
    evaluate,
    pause,
    resume,
    save_checkpoint,
    set_change,
    stop,
)
from tests.support.tiny_runs import outcome
from trainer_agent import RuntimeParameterUpdateCallback, attach
from trainer_agent.steering.actions import ActionKind
from trainer_agent.steering.session import SteeringSession

Messages = Sequence[link_pb2.AgentMessage]


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("JOB_ID", "MIDCOURSE_CONTROL_PLANE", "MIDCOURSE_ROLL_BACK_FILE"):
        monkeypatch.delenv(name, raising=False)


def run(
    directory: Path,
    script: Mapping[int, Messages],
    while_held: Sequence[Messages] = (),
    *,
    eval_dataset: Any = None,
    callbacks: Sequence[TrainerCallback] = (),
    resume_from: str | None = None,
    **args: Any,
) -> tuple[LinkScript, Trainer]:
    links = LinkScript(script, while_held)
    trainer = plain_trainer(directory, eval_dataset=eval_dataset, **args)
    attach(trainer, "job", link_factory=links)
    for callback in callbacks:
        trainer.add_callback(callback)
    trainer.train(resume_from_checkpoint=resume_from)
    assert not links.link.faults
    return links, trainer


def outcomes(links: LinkScript) -> dict[int, session_pb2.UpdateOutcome]:
    found: dict[int, session_pb2.UpdateOutcome] = {}
    for each in links.link.outcomes:
        assert each.revision not in found, "one outcome each"
        found[each.revision] = each
    return found


class Trace(TrainerCallback):
    """Notes in which order things happen."""

    def __init__(self) -> None:
        self.events: list[str] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.events.append(f"step {state.global_step}")

    def on_evaluate(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.events.append(f"evaluate {state.global_step}")

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.events.append(f"save {state.global_step}")


def test_what_a_run_offers_is_declared(tmp_path: Path) -> None:
    always = {
        update_pb2.ACTION_KIND_PAUSE,
        update_pb2.ACTION_KIND_RESUME,
        update_pb2.ACTION_KIND_SAVE_CHECKPOINT,
        update_pb2.ACTION_KIND_STOP,
    }
    for dataset, more in ((None, set()), (Points(8), {update_pb2.ACTION_KIND_EVALUATE})):
        links, _ = run(tmp_path, {}, eval_dataset=dataset, max_steps=1)
        hello = links.link.first_hello
        assert hello is not None
        assert set(hello.state.actions) == always | more


def test_a_checkpoint_is_saved_and_its_path_told(tmp_path: Path) -> None:
    links, _ = run(tmp_path, {3: [delivery(1, action=save_checkpoint())]})
    applied = outcomes(links)[1].applied
    assert applied.step == 4
    assert applied.action_result.checkpoint == str(tmp_path / "checkpoint-3")
    assert (tmp_path / "checkpoint-3" / "trainer_state.json").is_file()
    assert [each.name for each in tmp_path.iterdir()] == ["checkpoint-3"]


def test_saving_changes_nothing_in_the_run(tmp_path: Path) -> None:
    _, plain = run(tmp_path / "plain", {})
    _, saved = run(tmp_path / "saved", {3: [delivery(1, action=save_checkpoint())]})
    outcome(saved).assert_same(outcome(plain))


def test_evaluation_metrics_are_told(tmp_path: Path) -> None:
    links, trainer = run(tmp_path, {3: [delivery(1, action=evaluate())]}, eval_dataset=Points(8))
    applied = outcomes(links)[1].applied
    (logged,) = [each for each in trainer.state.log_history if "eval_loss" in each]
    assert logged["step"] == 3
    assert applied.action_result.metrics["eval_loss"] == logged["eval_loss"]
    assert "epoch" not in applied.action_result.metrics


def test_the_metrics_of_several_datasets_are_told_together(tmp_path: Path) -> None:
    datasets = {"one": Points(8), "two": Points(12)}
    links, _ = run(tmp_path, {3: [delivery(1, action=evaluate())]}, eval_dataset=datasets)
    metrics = outcomes(links)[1].applied.action_result.metrics
    assert {"eval_one_loss", "eval_two_loss"} <= set(metrics)


def run_with_an_evaluate_of_its_own(
    directory: Path, script: Mapping[int, Messages], while_held: Sequence[Messages] = ()
) -> tuple[LinkScript, int]:
    """Train with an ``evaluate`` that tells no callback; returns how often it was asked too."""
    links = LinkScript(script, while_held)
    trainer = plain_trainer(directory, eval_dataset=Points(8), max_steps=6)
    attach(trainer, "job", link_factory=links)
    asked = 0

    def evaluates(*_: Any, **__: Any) -> dict[str, float]:
        nonlocal asked
        asked += 1
        assert asked < 4, "asked again and again"
        return {"eval_mine": 0.5}

    trainer.evaluate = evaluates  # type: ignore[method-assign]
    trainer.train()
    assert trainer.state.global_step == 6
    assert not links.link.faults
    return links, asked


def test_an_evaluation_that_no_callback_is_told_of_is_asked_for_once_more_and_told(
    tmp_path: Path,
) -> None:
    links, asked = run_with_an_evaluate_of_its_own(tmp_path, {3: [delivery(1, action=evaluate())]})
    assert asked == 2
    applied = outcomes(links)[1].applied
    assert applied.step == 4
    assert applied.action_result.metrics == {"eval_mine": 0.5}


def test_a_held_run_hears_what_comes_after_an_evaluation_that_no_callback_is_told_of(
    tmp_path: Path,
) -> None:
    while_held = [
        [delivery(2, action=evaluate())],
        [delivery(3, action=evaluate())],
        [delivery(4, action=resume())],
    ]
    links, asked = run_with_an_evaluate_of_its_own(
        tmp_path, {3: [delivery(1, action=pause())]}, while_held
    )
    assert asked == 3, "the first was asked of the framework, and so once more"
    for revision in (2, 3):
        metrics = outcomes(links)[revision].applied.action_result.metrics
        assert metrics == {"eval_mine": 0.5}


def test_evaluating_on_no_datasets_at_all_is_soon_done(tmp_path: Path) -> None:
    script = {3: [delivery(1, action=evaluate())]}
    links, _ = run(tmp_path, script, eval_dataset={}, max_steps=5)
    assert outcomes(links)[1].HasField("applied")


class TakesFlagsBack(TrainerCallback):
    """Has the framework do nothing of what is wanted."""

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        control.should_evaluate = control.should_save = False

    on_epoch_end = on_step_end


def test_without_a_trainer_to_ask_it_is_said_that_an_evaluation_told_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    links = LinkScript({3: [delivery(1, action=evaluate())]})
    callback = RuntimeParameterUpdateCallback("job", link_factory=links)
    plain_trainer(
        tmp_path,
        callbacks=[callback, TakesFlagsBack()],
        eval_dataset=Points(8),
        eval_strategy="steps",
        eval_steps=100,
    ).train()
    assert not outcomes(links)[1].applied.action_result.metrics
    assert "its metrics are not known" in caplog.text


def end_with_everything_wanted(directory: Path, evaluates: Any = None) -> LinkScript:
    links = LinkScript({3: [delivery(1, action=evaluate()), delivery(2, action=stop())]})
    trainer = plain_trainer(directory, eval_dataset=Points(8))
    attach(trainer, "job", link_factory=links)
    trainer.add_callback(TakesFlagsBack())
    if evaluates is not None:
        trainer.evaluate = evaluates  # type: ignore[method-assign]
    trainer.train()
    assert links.link.sent[-1].HasField("finished")
    return links


def test_all_that_is_wanted_at_the_end_is_done_there(tmp_path: Path) -> None:
    told = outcomes(end_with_everything_wanted(tmp_path))
    assert "eval_loss" in told[1].applied.action_result.metrics
    assert told[2].applied.action_result.checkpoint == str(tmp_path / "checkpoint-3")


def test_where_that_fails_the_run_is_finished_all_the_same(tmp_path: Path) -> None:
    def broken(*_: Any, **__: Any) -> Any:
        raise RuntimeError("broken on purpose")

    told = outcomes(end_with_everything_wanted(tmp_path, broken))
    assert told[1].rejected.reason == told[2].rejected.reason == "ACTION_NOT_CARRIED_OUT"


@pytest.mark.parametrize("attached", [False, True])
def test_without_an_eval_dataset_evaluating_is_refused_at_once(
    attached: bool, tmp_path: Path
) -> None:
    links = LinkScript({3: [delivery(1, action=evaluate(), at_step=9)]})
    trainer = plain_trainer(tmp_path)
    if attached:
        attach(trainer, "job", link_factory=links)
    else:
        trainer.add_callback(RuntimeParameterUpdateCallback("job", link_factory=links))
    trainer.train()
    rejected = links.link.outcomes[0].rejected
    assert rejected.reason == "ACTION_UNAVAILABLE"
    assert "eval_dataset" in rejected.message
    assert rejected.step == 3


def test_stop_saves_and_ends_and_says_so_before_the_end(tmp_path: Path) -> None:
    links, trainer = run(tmp_path, {3: [delivery(1, action=stop())]})
    assert trainer.state.global_step == 3
    assert outcomes(links)[1].applied.action_result.checkpoint == str(tmp_path / "checkpoint-3")
    kinds = [each.WhichOneof("message") for each in links.link.sent]
    assert kinds.index("outcome") < kinds.index("finished") == len(kinds) - 1
    assert links.link.closed == [None]


def test_what_would_come_into_force_with_a_stop_expires_and_is_not_in_its_checkpoint(
    tmp_path: Path,
) -> None:
    script = {
        3: [
            delivery(1, set_change(0.5)),
            delivery(2, action=stop()),
            delivery(3, set_change(0.25)),
            delivery(4, set_change(0.25), action=stop()),
        ]
    }
    links, trainer = run(tmp_path, script)
    told = outcomes(links)
    assert told[2].applied.step == 4
    for revision in (1, 3, 4):
        result = told[revision].WhichOneof("result")
        assert result == ("rejected" if revision == 4 else "expired")
    assert told[4].rejected.reason == "CHANGES_WITH_STOP"
    assert trainer.optimizer is not None
    assert trainer.optimizer.param_groups[0]["lr"] not in {0.5, 0.25}

    again, _ = run(tmp_path, {}, resume_from=str(tmp_path / "checkpoint-3"))
    hello = again.link.first_hello
    assert hello is not None
    assert [(each.first, each.last) for each in hello.state.in_force] == [(2, 2)]
    assert again.link.metric("learning_rate").keys() == set(range(4, 11))
    (known,) = [each for each in hello.state.outcomes if each.revision == 2]
    assert known == told[2], "a run that goes on knows that it was stopped, and does not stop again"


def test_a_stop_is_saved_even_where_only_the_best_checkpoint_is(tmp_path: Path) -> None:
    script = {3: [delivery(1, action=stop())]}
    links, trainer = run(
        tmp_path,
        script,
        eval_dataset=Points(8),
        save_strategy="best",
        eval_strategy="steps",
        eval_steps=1,
        metric_for_best_model="eval_loss",
        greater_is_better=True,  # which it will not be
    )
    assert trainer.state.global_step == 3
    checkpoint = outcomes(links)[1].applied.action_result.checkpoint
    assert Path(checkpoint).is_dir()


def test_a_pause_is_acknowledged_at_once_and_told_and_ends(tmp_path: Path) -> None:
    trace = Trace()
    links, trainer = run(
        tmp_path,
        {3: [delivery(1, action=pause())]},
        [[], [], [delivery(2, action=resume())]],
        callbacks=[trace],
    )
    assert trainer.state.global_step == 10
    told = outcomes(links)
    assert (told[1].applied.step, told[2].applied.step) == (4, 4)
    phases = [each.phase for each in links.link.states]
    assert phases == [session_pb2.TRAINER_PHASE_PAUSED, session_pb2.TRAINER_PHASE_TRAINING]
    kinds = [each.WhichOneof("message") for each in links.link.sent]
    state = kinds.index("state")
    assert kinds.index("outcome") < state, "acknowledged before it holds"
    assert trace.events == [f"step {step}" for step in range(1, 11)]


def test_a_pause_changes_nothing_in_the_run(tmp_path: Path) -> None:
    _, plain = run(tmp_path, {})
    _, held = run(
        tmp_path, {3: [delivery(1, action=pause())]}, [[], [delivery(2, action=resume())]]
    )
    outcome(held).assert_same(outcome(plain))


def test_what_is_sent_while_paused_is_applied_at_that_step(tmp_path: Path) -> None:
    links, _ = run(
        tmp_path,
        {3: [delivery(1, action=pause())]},
        [
            [delivery(2, set_change(0.5))],
            [delivery(3, set_change(0.25))],
            [delivery(4, action=resume())],
        ],
    )
    told = outcomes(links)
    assert {revision: told[revision].applied.step for revision in told} == dict.fromkeys(told, 4)
    assert told[3].applied.transitions[0].old_value.number == 0.5
    rates = links.link.metric("learning_rate")
    assert rates[4] == 0.25
    order = [each.revision for each in links.link.outcomes]
    assert order == [1, 4, 2, 3], "a change is confirmed by the first step that used it"


def test_what_is_held_for_later_can_be_withdrawn_and_expires_while_paused(tmp_path: Path) -> None:
    from tests.support.scripted_link import withdrawal

    links, _ = run(
        tmp_path,
        {
            3: [
                delivery(1, action=pause()),
                delivery(2, set_change(0.5), at_step=8),
                delivery(3, set_change(0.5), at_step=8, deadline=0),
            ]
        },
        [[withdrawal(2)], [delivery(4, action=resume())]],
    )
    told = outcomes(links)
    assert told[2].HasField("withdrawn")
    assert told[3].expired.cause == update_pb2.EXPIRY_CAUSE_DEADLINE
    assert 0.5 not in links.link.metric("learning_rate").values()


@pytest.mark.parametrize("accumulation", [1, 2])
def test_saving_and_evaluating_while_paused_again_and_again(
    accumulation: int, tmp_path: Path
) -> None:
    trace = Trace()
    links, _ = run(
        tmp_path,
        {3: [delivery(1, action=pause())]},
        [
            [delivery(2, action=evaluate())],
            [delivery(3, action=save_checkpoint())],
            [delivery(4, action=evaluate()), delivery(5, action=save_checkpoint())],
            [delivery(6, action=resume())],
        ],
        eval_dataset=Points(8),
        callbacks=[trace],
        gradient_accumulation_steps=accumulation,
        max_steps=5,
    )
    told = outcomes(links)
    assert {each.applied.step for each in told.values()} == {4}
    for revision in (2, 4):
        assert "eval_loss" in told[revision].applied.action_result.metrics
    for revision in (3, 5):
        assert told[revision].applied.action_result.checkpoint == str(tmp_path / "checkpoint-3")
    assert trace.events == [
        *("step 1", "step 2", "step 3"),
        *("evaluate 3", "save 3", "evaluate 3", "save 3"),
        *("step 4", "step 5"),
    ]
    phases = [each.phase for each in links.link.states]
    assert phases[0] == session_pb2.TRAINER_PHASE_PAUSED
    assert phases[-1] == session_pb2.TRAINER_PHASE_TRAINING
    assert set(phases[:-1]) == {session_pb2.TRAINER_PHASE_PAUSED}


def test_a_checkpoint_saved_while_paused_is_gone_on_from_to_the_bit(tmp_path: Path) -> None:
    """The second one is saved past the framework's own way, with changes not yet used."""
    links, first = run(
        tmp_path,
        {3: [delivery(1, action=pause())]},
        [
            [delivery(2, action=save_checkpoint())],
            [delivery(3, set_change(0.05)), delivery(4, action=save_checkpoint())],
            [delivery(5, action=resume())],
        ],
    )
    again, second = run(tmp_path, {}, resume_from=str(tmp_path / "checkpoint-3"))
    for name, weight in first.model.named_parameters():  # type: ignore[union-attr]
        assert torch.equal(weight, dict(second.model.named_parameters())[name])  # type: ignore[union-attr]
    assert again.link.metric("learning_rate")[4] == 0.05
    assert [each.revision for each in again.link.outcomes if each.revision == 3] == [3]
    assert outcomes(links)[3].applied == again.link.outcomes[-1].applied


def test_a_pause_at_the_end_of_an_epoch_holds_all_the_same(tmp_path: Path) -> None:
    trace = Trace()
    links, trainer = run(
        tmp_path,
        {4: [delivery(1, action=pause())]},
        [[delivery(2, action=save_checkpoint())], [], [delivery(3, action=resume())]],
        callbacks=[trace],
        train_dataset=Points(16),
        max_steps=-1,
        num_train_epochs=2,
    )
    assert trainer.state.global_step == 8
    assert trace.events[3:6] == ["step 4", "save 4", "step 5"]
    assert len(outcomes(links)) == 3


def test_a_stop_ends_a_pause(tmp_path: Path) -> None:
    links, trainer = run(
        tmp_path, {3: [delivery(1, action=pause())]}, [[delivery(2, action=stop())]]
    )
    assert trainer.state.global_step == 3
    assert outcomes(links)[2].applied.action_result.checkpoint == str(tmp_path / "checkpoint-3")


@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2), (2, 4)])
def test_a_stop_in_front_of_a_step_whose_data_is_taken_comes_after_it(
    before: int, after: int, tmp_path: Path
) -> None:
    """The run goes on from there as if nothing had happened, with what that step used first."""
    args: dict[str, Any] = {
        "gradient_accumulation_steps": before,
        "per_device_train_batch_size": 1,
        "train_dataset": Points(16),
        "max_steps": -1,
        "num_train_epochs": 2,
    }
    change = delivery(1, set_change(after, parameter="gradient_accumulation_steps"))
    whole, trained = run(tmp_path / "whole", {2: [change]}, **args)
    assert outcomes(whole)[1].applied.step == 3
    # To save, a held run returns to the framework, which has then taken the next step's data.
    held = [change, delivery(2, action=pause()), delivery(3, action=save_checkpoint())]
    while_held = [[delivery(4, action=stop()), delivery(5, set_change(0.5))]]
    links, stopped = run(tmp_path / "stopped", {2: held}, while_held, **args)
    told = outcomes(links)
    assert told[1].applied.step == 3
    assert told[4].applied.action_result.checkpoint == str(tmp_path / "stopped" / "checkpoint-3")
    assert told[5].expired.cause == update_pb2.EXPIRY_CAUSE_JOB_ENDED
    assert stopped.state.global_step == 3
    for step in (2, 3):
        checkpoint = str(tmp_path / "stopped" / f"checkpoint-{step}")
        _, again = run(tmp_path / f"from-{step}", {}, resume_from=checkpoint, **args)
        assert again.state.global_step == trained.state.global_step
        for name, weight in trained.model.named_parameters():  # type: ignore[union-attr]
            assert torch.equal(weight, dict(again.model.named_parameters())[name])  # type: ignore[union-attr]


def test_pausing_and_resuming_twice_is_no_failure(tmp_path: Path) -> None:
    links, _ = run(
        tmp_path,
        {2: [delivery(1, action=resume())], 3: [delivery(2, action=pause())]},
        [[delivery(3, action=pause())], [delivery(4, action=resume())]],
    )
    assert {each.WhichOneof("result") for each in outcomes(links).values()} == {"applied"}


def test_an_interrupt_gets_through_a_pause(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.support.scripted_link import ScriptedLink

    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(ScriptedLink, "wait", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, {3: [delivery(1, action=pause())]})


def test_where_steering_fails_a_pause_ends_and_training_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    links = LinkScript({3: [delivery(1, action=pause())]}, [[]])
    trainer = plain_trainer(tmp_path)
    attach(trainer, "job", link_factory=links)

    def broken(*_: Any) -> Any:
        raise RuntimeError("broken on purpose")

    monkeypatch.setattr(SteeringSession, "_hold", broken)
    trainer.train()
    assert trainer.state.global_step == 10
    assert links.link.faults[0].component == "on_step_end"


def test_changes_with_an_action_are_told_once_both_are_known(tmp_path: Path) -> None:
    links, _ = run(tmp_path, {3: [delivery(1, set_change(0.5), action=save_checkpoint())]})
    applied = outcomes(links)[1].applied
    assert applied.transitions[0].new_value.number == 0.5
    assert applied.action_result.checkpoint == str(tmp_path / "checkpoint-3")
    assert links.link.metric("learning_rate")[4] == 0.5

    again, _ = run(tmp_path, {}, resume_from=str(tmp_path / "checkpoint-3"))
    assert outcomes(again)[1].applied == applied


def test_what_can_not_be_changed_is_not_acted_on_either(tmp_path: Path) -> None:
    links, _ = run(tmp_path, {3: [delivery(1, set_change(-1.0), action=save_checkpoint())]})
    assert outcomes(links)[1].HasField("rejected")
    assert not list(tmp_path.iterdir())


def test_an_action_that_is_not_due_by_the_end_expires(tmp_path: Path) -> None:
    links, _ = run(
        tmp_path,
        {
            8: [
                delivery(1, action=save_checkpoint(), at_step=99),
                delivery(2, action=pause(), at_step=11),
            ]
        },
    )
    causes = {each.expired.cause for each in outcomes(links).values()}
    assert causes == {update_pb2.EXPIRY_CAUSE_JOB_ENDED}


def test_what_was_applied_before_the_run_went_back_is_changed_again_and_not_done_again(
    tmp_path: Path,
) -> None:
    before = update_pb2.Applied(step=7, instance_id="before")
    acted = delivery(1, action=save_checkpoint(), state=update_pb2.UPDATE_STATE_APPLIED)
    acted.delivery.update.applied.CopyFrom(before)
    both = delivery(
        2, set_change(0.5), action=pause(), max_step=2, state=update_pb2.UPDATE_STATE_APPLIED
    )
    links, trainer = run(tmp_path, {3: [acted, both]})
    told = outcomes(links)
    assert told[1].applied == before
    assert told[2].applied.step == 4
    assert trainer.state.global_step == 10
    assert not list(tmp_path.iterdir())


def test_every_kind_is_known_to_the_wire() -> None:
    kinds = update_pb2.Action.DESCRIPTOR.oneofs_by_name["kind"].fields
    assert {each.name for each in kinds} == set(ActionKind)
