"""A loss that is not finite: held or taken back, cut, reported as what it is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import Trainer

from midcourse.agent.v1 import session_pb2
from midcourse.link.v1 import link_pb2
from tests.support.plain_trainer import Line, plain_trainer
from tests.support.scripted_link import LinkScript, delivery, pause, resume
from tests.support.tiny_runs import outcome
from trainer_agent import GuardRails, Protection, RuntimeParameterUpdateCallback, attach
from trainer_agent.steering.protection import LossWatch


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("JOB_ID", "MIDCOURSE_CONTROL_PLANE", "MIDCOURSE_ROLL_BACK_FILE"):
        monkeypatch.delenv(name, raising=False)


class Diverging(Line):
    """Its loss is what it is told to be, at given calls, and its gradients stay finite."""

    def __init__(self, losses: dict[int, float]) -> None:
        super().__init__()
        self._losses = losses
        self._calls = 0

    def forward(self, x: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        self._calls += 1
        found = super().forward(x, labels)
        if self._calls in self._losses:
            found["loss"] = found["loss"] + self._losses[self._calls]
        return found


def run(
    directory: Path,
    losses: dict[int, float],
    while_held: Sequence[Sequence[link_pb2.AgentMessage]] = (),
    protection: Protection | None = Protection(),  # noqa: B008 - it is frozen
    script: Any = None,
    guard_rails: Any = None,
    **args: Any,
) -> tuple[LinkScript, Trainer]:
    links = LinkScript(script, while_held)
    trainer = plain_trainer(
        directory, model=Diverging(losses), max_grad_norm=0, learning_rate=0.01, **args
    )
    attach(trainer, "job", protection=protection, guard_rails=guard_rails, link_factory=links)
    trainer.train()
    assert not links.link.faults
    return links, trainer


def given_revision(revision: int, local: session_pb2.LocalUpdate) -> link_pb2.AgentMessage:
    """Return the delivery of a local update, as the control plane makes it."""
    message = delivery(revision, author="guard", request_id=local.request_id)
    message.delivery.update.spec.CopyFrom(local.spec)
    return message


@pytest.mark.parametrize("loss", [math.nan, math.inf, -math.inf])
def test_the_run_is_held_and_the_rate_cut_and_it_is_told(loss: float, tmp_path: Path) -> None:
    links, trainer = run(tmp_path, {4: loss}, [[], [delivery(1, action=resume())]])
    assert trainer.state.global_step == 10
    (local,) = links.link.local_updates
    assert local.request_id.startswith("guard-")
    assert local.spec.reason == f"the loss of step 4 is {loss:g}"
    assert local.spec.action.HasField("pause")
    (change,) = local.spec.changes
    assert (change.parameter, change.multiply.factor) == ("learning_rate", 0.5)
    assert links.link.states[0].phase == session_pb2.TRAINER_PHASE_PAUSED
    rates = links.link.metric("learning_rate")
    assert rates[5] == pytest.approx(rates[4] * 0.5 * (6 / 7), rel=1e-9)
    assert [each.revision for each in links.link.outcomes] == [1], "it has no revision yet"


def test_the_control_planes_update_is_answered_and_not_applied_again(tmp_path: Path) -> None:
    class Plane(LinkScript):
        """Delivers local updates back with a revision, and again."""

        def __call__(self, **options: Any) -> Any:
            link = super().__call__(**options)
            told = link.send

            def send(message: link_pb2.TrainerMessage) -> None:
                told(message)
                if message.HasField("local_update"):
                    back = given_revision(7, message.local_update)
                    link._while_held[0] = [back, delivery(8, action=resume())]
                    link._script[6] = [back]

            link.send = send  # type: ignore[method-assign]  # it listens
            return link

    links = Plane({}, [[]])
    trainer = plain_trainer(tmp_path, model=Diverging({4: math.nan}), learning_rate=0.01)
    attach(trainer, "job", protection=Protection(), link_factory=links)
    trainer.train()
    applied = [each for each in links.link.outcomes if each.revision == 7]
    assert len(applied) == 2, "the duplicate is answered too"
    assert applied[0] == applied[1]
    assert applied[0].applied.step == 5
    rates = links.link.metric("learning_rate")
    assert rates[7] == pytest.approx(rates[5] * (4 / 6), rel=1e-9), "cut once"
    state = links.link.hello().state
    assert not state.local_updates
    assert [(each.first, each.last) for each in state.in_force] == [(7, 8)]


def test_it_rides_in_the_checkpoint_until_it_has_a_revision(tmp_path: Path) -> None:
    links, _ = run(
        tmp_path,
        {4: math.nan},
        [[delivery(1, action=resume())]],
        save_strategy="steps",
        save_steps=5,
    )
    (local,) = links.link.local_updates
    again = LinkScript({6: [given_revision(2, local)]})
    trainer = plain_trainer(tmp_path, learning_rate=0.01)
    attach(trainer, "job", link_factory=again)
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-5"))
    hello = again.link.first_hello
    assert hello is not None
    assert list(hello.state.local_updates) == [local]
    (told,) = [each for each in again.link.outcomes if each.revision == 2]
    assert told.applied.step == 5
    assert again.link.metric("learning_rate")[10] == links.link.metric("learning_rate")[10]


def test_every_micro_batch_counts(tmp_path: Path) -> None:
    links, _ = run(
        tmp_path,
        {5: math.nan},
        [[delivery(1, action=resume())]],
        gradient_accumulation_steps=4,
        max_steps=4,
    )
    assert links.link.local_updates[0].spec.reason == "the loss of step 2 is nan"


def test_while_it_is_held_already_nothing_more_is_done(tmp_path: Path) -> None:
    links, _ = run(
        tmp_path,
        {3: math.nan},
        [[delivery(2, action=resume())]],
        script={3: [delivery(1, action=pause())]},
    )
    assert len(links.link.local_updates) == 1


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"guard_rails": {"learning_rate": GuardRails(frozen=True)}}, "can not be cut"),
        ({"guard_rails": {"learning_rate": GuardRails(minimum=0.009)}}, "can not be cut"),
        ({"protection": Protection(cut=1)}, ""),
        ({"protection": Protection("roll_back")}, "it can not be taken back"),
    ],
)
def test_what_can_not_be_done_is_left_out_and_said(options: Any, says: str, tmp_path: Path) -> None:
    links, _ = run(tmp_path, {2: math.nan}, [[delivery(1, action=resume())]], **options)
    (local,) = links.link.local_updates
    assert says in local.spec.reason
    assert local.spec.action.HasField("pause")
    assert bool(local.spec.changes) is ("cut" not in says and says != "")


def test_a_run_with_a_finite_loss_is_the_same_to_the_bit(tmp_path: Path) -> None:
    _, guarded = run(tmp_path, {})
    _, plain = run(tmp_path, {}, protection=None)
    outcome(guarded).assert_same(outcome(plain))
    assert "training_step" not in vars(guarded), "let go of at the end"


def test_without_a_trainer_to_watch_it_is_said(tmp_path: Path) -> None:
    links = LinkScript()
    callback = RuntimeParameterUpdateCallback("job", protection=Protection(), link_factory=links)
    plain_trainer(tmp_path, callbacks=[callback]).train()
    assert "attach(trainer, protection=" in links.link.faults[0].message


@pytest.mark.parametrize(
    "wrong", [{"on_nonfinite_loss": "panic"}, {"cut": 0}, {"cut": 1.5}, {"max_roll_backs": 0}]
)
def test_what_makes_no_sense_is_said_in_the_script(wrong: Any) -> None:
    with pytest.raises(ValueError, match="got"):
        Protection(**wrong)


class Copied:
    """An event of an accelerator: the copy is there once it is told so."""

    def __init__(self) -> None:
        self.there = False

    def query(self) -> bool:
        return self.there


def test_on_an_accelerator_a_loss_is_looked_at_once_it_has_come_over() -> None:
    """The copy itself needs an accelerator; what is made of it does not."""

    class OneStep:
        def training_step(self) -> torch.Tensor:
            return torch.tensor(1.0)

    watch = LossWatch(OneStep(), 3)
    event = Copied()
    watch._pending.append((3, torch.tensor(math.nan), event))
    assert watch.alarm(5) is None
    event.there = True
    found = watch.alarm(6)
    assert found is not None
    assert found[0] == 3
    assert math.isnan(found[1])
    assert watch.alarm(7) is None


def test_on_an_accelerator_every_loss_of_a_step_of_many_micro_batches_is_looked_at() -> None:
    watch = LossWatch(SimpleNamespace(training_step=None), 1)
    for number in range(128):
        event = Copied()
        event.there = True
        watch._await(torch.tensor(math.nan if number == 0 else 1.0), event)
    found = watch.alarm(2)
    assert found is not None
    assert found[0] == 1


def test_a_training_step_of_the_trainers_own_is_there_again_afterwards() -> None:
    def own() -> torch.Tensor:
        return torch.tensor(1.0)

    trainer = SimpleNamespace(training_step=own)
    watch = LossWatch(trainer, 1)
    assert trainer.training_step is not own
    watch.detach()
    assert trainer.training_step is own


def test_the_first_step_of_a_resumed_run_is_named_as_it_is(tmp_path: Path) -> None:
    plain_trainer(tmp_path, save_strategy="steps", save_steps=5).train()
    links = LinkScript({}, [[delivery(1, action=resume())]])
    trainer = plain_trainer(tmp_path, model=Diverging({1: math.nan}))
    attach(trainer, "job", protection=Protection(), link_factory=links)
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-5"))
    assert links.link.local_updates[0].spec.reason == "the loss of step 6 is nan"


def test_a_loss_on_a_device_of_another_kind_is_said_to_be_unwatched() -> None:
    class OneStep:
        def training_step(self) -> Any:
            return SimpleNamespace(device=torch.device("mps"))

    trainer = OneStep()
    watch = LossWatch(trainer, 1)
    assert trainer.training_step().device.type == "mps", "the loop gets what it would have got"
    with pytest.raises(RuntimeError, match="on mps"):
        watch.alarm(2)
    watch.detach()
    assert not vars(trainer)


def test_where_losses_can_not_be_watched_steering_ends_and_training_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> None:
        raise RuntimeError("broken on purpose")

    monkeypatch.setattr(LossWatch, "_look_at", broken)
    links = LinkScript()
    trainer = plain_trainer(tmp_path)
    attach(trainer, "job", protection=Protection(), link_factory=links)
    trainer.train()
    assert trainer.state.global_step == 10
    (fault,) = links.link.faults
    assert "broken on purpose" in fault.message
