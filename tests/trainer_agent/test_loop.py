"""Training loops written by hand: equal to the bit to plain ones, and steered."""

from __future__ import annotations

import io
import logging
import math
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR

from midcourse.control.v1 import update_pb2
from midcourse.link.v1 import link_pb2
from tests.support.scripted_link import LinkScript, delivery, multiply_change, set_change
from trainer_agent.loop import Loop
from trainer_agent.parameters.learning_rate import LearningRate
from trainer_agent.parameters.user import Parameter
from trainer_agent.steering.protection import Protection

STEPS = 12
AT = 4
VALUE = 0.02

Script = Mapping[int, Sequence[link_pb2.AgentMessage]]
SCHEDULERS: dict[str, Callable[[Any], Any]] = {
    "lambda": lambda optimizer: LambdaLR(optimizer, lambda step: 1.0 - step / STEPS),
    "cosine": lambda optimizer: CosineAnnealingLR(optimizer, T_max=STEPS),
    "none": lambda optimizer: None,
}


class Training:
    """A loop around a small model."""

    def __init__(self, scheduler: str = "lambda") -> None:
        generator = torch.Generator().manual_seed(0)
        self.model = torch.nn.Linear(3, 1)
        with torch.no_grad():
            self.model.weight.fill_(0.5)
            self.model.bias.zero_()
        self.x = torch.randn(STEPS, 8, 3, generator=generator)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=0.1, weight_decay=0.01)
        self.scheduler = SCHEDULERS[scheduler](self.optimizer)
        self.losses: list[float] = []
        self.rates: list[float] = []

    def one(self, index: int) -> torch.Tensor:
        x = self.x[index]
        loss = torch.nn.functional.mse_loss(self.model(x), x.sum(dim=1, keepdim=True))
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]  # torch's own lack
        self.rates.append(self.optimizer.param_groups[0]["lr"])
        self.optimizer.step()
        if self.scheduler is not None:
            self.scheduler.step()
        self.losses.append(loss.item())
        return loss

    def assert_same(self, other: Training) -> None:
        assert self.losses == other.losses
        assert self.rates == other.rates
        assert torch.equal(self.model.weight, other.model.weight)

    def steered(self, script: LinkScript, first: int = 1, last: int = STEPS, **more: Any) -> None:
        """Train in a loop that a script steers."""
        state = more.pop("state", None)
        options = {"job": "job", "total_steps": STEPS, **more}
        with Loop(self.optimizer, self.scheduler, link_factory=script, **options) as loop:
            if state is not None:
                loop.load_state_dict(state)
            for step in range(first, last + 1):
                loop.step(step, loss=self.one(step - 1))
        self.state = loop.state_dict()

    def plain(self, script: Callable[[int], None] = lambda step: None) -> Training:
        """Train in a plain loop."""
        for step in range(1, STEPS + 1):
            self.one(step - 1)
            script(step)
        return self


@pytest.fixture(params=["lambda", "cosine"])
def scheduler(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


def test_without_updates_a_loop_is_as_a_plain_one(scheduler: str) -> None:
    script = LinkScript()
    watched = Training(scheduler)
    watched.steered(script)
    watched.assert_same(Training(scheduler).plain())
    assert script.link.metric("loss") == dict(enumerate(watched.losses, 1))
    assert script.link.metric("learning_rate") == dict(enumerate(watched.rates, 1))
    assert script.link.closed == [None]
    assert script.link.first_hello is not None
    names = {each.name for each in script.link.first_hello.state.parameters}
    assert "learning_rate" in names
    assert script.link.sent[-1].finished.step == STEPS


def set_with_torch(scheduler: str) -> Training:
    """Train in a plain loop whose script sets the rate at a step, the schedule scaled from there.

    A LambdaLR is told another base value. A cosine goes on from the rate that it finds, and so
    rounds otherwise once that was changed: its own rates are noted, and scaled.
    """
    training = Training(scheduler)
    if scheduler == "lambda":

        def script(step: int) -> None:
            (group,), inner = training.optimizer.param_groups, training.scheduler
            if step == AT:
                inner.base_lrs[0] = group["initial_lr"] = inner.base_lrs[0] * (VALUE / group["lr"])
                group["lr"] = VALUE

    else:
        noted = Training(scheduler).plain().rates
        scaled = [rate * (VALUE / noted[AT]) for rate in noted]
        scaled[AT] = VALUE
        training.scheduler = None

        def script(step: int) -> None:
            if step < STEPS:
                training.optimizer.param_groups[0]["lr"] = (scaled if step >= AT else noted)[step]

    return training.plain(script)


def test_a_live_set_is_what_a_plain_loop_does(scheduler: str) -> None:
    script = LinkScript({AT: [delivery(1, set_change(VALUE))]})
    steered = Training(scheduler)
    steered.steered(script)
    assert steered.rates[AT] == VALUE
    steered.assert_same(set_with_torch(scheduler))
    (outcome,) = script.link.outcomes
    assert outcome.applied.step == AT + 1


def test_a_resumed_loop_is_the_uninterrupted_one(scheduler: str) -> None:
    updates: Script = {
        AT: [delivery(1, set_change(VALUE)), delivery(2, multiply_change(0.5), at_step=10)]
    }
    whole = Training(scheduler)
    whole.steered(LinkScript(updates))

    first = Training(scheduler)
    script = LinkScript(updates)
    with Loop(
        first.optimizer, first.scheduler, job="job", total_steps=STEPS, link_factory=script
    ) as loop:
        for step in range(1, 7):
            loop.step(step, loss=first.one(step - 1))
        saved: dict[str, Any] = {
            "model": first.model.state_dict(),
            "optimizer": first.optimizer.state_dict(),
            "scheduler": first.scheduler.state_dict(),
            "loop": loop.state_dict(),
        }
    buffer = io.BytesIO()
    torch.save(saved, buffer)
    saved = torch.load(io.BytesIO(buffer.getvalue()), weights_only=True)
    second = Training(scheduler)
    second.model.load_state_dict(saved["model"])
    second.optimizer.load_state_dict(saved["optimizer"])
    second.scheduler.load_state_dict(saved["scheduler"])
    again = LinkScript({7: updates[AT]})
    second.steered(again, first=7, state=saved["loop"])
    assert first.losses + second.losses == whole.losses
    assert first.rates + second.rates == whole.rates
    assert torch.equal(second.model.weight, whole.model.weight)
    assert [each.revision for each in again.link.outcomes if each.applied.step == AT + 1] == [1]
    assert again.link.first_hello is not None
    assert again.link.first_hello.start_step == 6


def test_parameters_of_the_script_s_own() -> None:
    level = [1.0]

    def put(value: Any) -> None:
        level[0] = value

    script = LinkScript({AT: [delivery(1, set_change(3.0, parameter="level"))]})
    training = Training()
    seen = []
    with Loop(training.optimizer, training.scheduler, job="job", link_factory=script) as loop:
        loop.expose(Parameter("level", lambda: level[0], put, maximum=5.0))
        with pytest.raises(ValueError, match="exposed twice"):
            loop.expose(Parameter("level", lambda: level[0], put))
        for step in range(1, 7):
            training.one(step - 1)
            loop.step(step)
            seen.append(level[0])
        with pytest.raises(ValueError, match="before the first step"):
            loop.expose(Parameter("other", lambda: level[0], put))
        with pytest.raises(ValueError, match="before the first step"):
            loop.load_state_dict({})
    assert seen == [1.0, 1.0, 1.0, 3.0, 3.0, 3.0]
    assert script.link.outcomes[0].applied.step == AT + 1


def test_only_what_is_exposed_where_the_optimizer_is_not_given() -> None:
    script = LinkScript({AT: [delivery(1, set_change(VALUE))]})
    training = Training("none")
    with Loop(job="job", link_factory=script) as loop:
        loop.expose(LearningRate(training.optimizer, training.scheduler))
        for step in range(1, 7):
            training.one(step - 1)
            loop.step(step)
    assert training.rates == [0.1] * AT + [VALUE] * 2
    assert script.link.first_hello is not None
    assert [each.name for each in script.link.first_hello.state.parameters] == ["learning_rate"]
    assert script.link.outcomes[0].applied.step == AT + 1


def test_steps_are_counted_from_one() -> None:
    training = Training()
    with Loop(training.optimizer, job="job", link_factory=LinkScript()) as loop:
        training.one(0)
        with pytest.raises(ValueError, match=r"expected 1 or more, got 0; count with range\(1,"):
            loop.step(0)
        loop.step(1)
        with pytest.raises(ValueError, match="expected 2 or more, got 1"):
            loop.step(1)


def act(revision: int, **kind: Any) -> link_pb2.AgentMessage:
    return delivery(revision, action=update_pb2.Action(**kind))


EVALUATE: dict[str, Any] = {"evaluate": update_pb2.EvaluateAction()}
SAVE: dict[str, Any] = {"save_checkpoint": update_pb2.SaveCheckpointAction()}
STOP: dict[str, Any] = {"stop": update_pb2.StopAction()}
PAUSE: dict[str, Any] = {"pause": update_pb2.PauseAction()}
RESUME: dict[str, Any] = {"resume": update_pb2.ResumeAction()}


def acting(script: LinkScript, **options: Any) -> list[str]:
    """Train in a loop that does what its signal says; returns what it did."""
    training = Training()
    done = []
    with Loop(
        training.optimizer, training.scheduler, job="job", link_factory=script, **options
    ) as loop:
        for step in range(1, STEPS + 1):
            signal = loop.step(step, loss=training.one(step - 1))
            done.append(f"step {step}")
            if signal.evaluate:
                done.append("evaluate")
                loop.report({"eval_loss": 0.25})
            if signal.save:
                done.append("save")
                loop.saved("/somewhere/checkpoint")
            assert not signal.save
            assert not signal.evaluate
            if signal.stop:
                done.append("stop")
                break
    return done


def test_a_loop_does_what_its_signal_says() -> None:
    script = LinkScript({2: [act(1, **EVALUATE)], 3: [act(2, **SAVE)], 5: [act(3, **STOP)]})
    assert acting(script) == [
        *["step 1", "step 2", "evaluate", "step 3", "save", "step 4", "step 5", "save", "stop"]
    ]
    results = {
        each.revision: (
            dict(each.applied.action_result.metrics),
            each.applied.action_result.checkpoint,
        )
        for each in script.link.outcomes
    }
    assert results == {
        1: ({"eval_loss": 0.25}, ""),
        2: ({}, "/somewhere/checkpoint"),
        3: ({}, "/somewhere/checkpoint"),
    }
    assert script.link.metric("eval_loss") == {2: 0.25}
    assert script.link.sent[-1].finished.step == 5


def test_what_a_loop_does_not_do_is_refused() -> None:
    script = LinkScript({2: [act(1, **EVALUATE)], 3: [act(2, **SAVE)], 5: [act(3, **STOP)]})
    done = acting(script, actions=["stop"])
    assert done == ["step 1", "step 2", "step 3", "step 4", "step 5", "stop"]
    evaluated, saved, stopped = script.link.outcomes
    assert evaluated.rejected.reason == saved.rejected.reason == "ACTION_UNAVAILABLE"
    assert stopped.applied.action_result.checkpoint == ""
    with pytest.raises(ValueError, match="save_checkpoint, evaluate, stop; got roll_back"):
        Loop(actions=["roll_back"])


class PausingLink(LinkScript):
    """Says more while it is waited on."""

    def __init__(self, script: Script, while_waiting: list[link_pb2.AgentMessage]) -> None:
        super().__init__(script)
        self.while_waiting = while_waiting
        self.waits = 0

    def __call__(self, **options: Any) -> Any:
        link = super().__call__(**options)
        poll, said = link.poll, self.while_waiting
        arrived: list[link_pb2.AgentMessage] = []

        def wait(seconds: float) -> None:
            self.waits += 1
            arrived.append(said.pop(0))

        def poll_both() -> Any:
            messages = [*poll(), *arrived]
            arrived.clear()
            return messages

        link.wait, link.poll = wait, poll_both  # type: ignore[method-assign]
        return link


def test_a_pause_is_within_step_and_changes_are_made_in_it() -> None:
    script = PausingLink(
        {AT: [act(1, **PAUSE)]}, [delivery(2, set_change(VALUE)), act(3, **RESUME)]
    )
    training = Training()
    training.steered(script)
    assert script.waits == 2
    assert training.rates[AT] == VALUE
    steps = {each.revision: each.applied.step for each in script.link.outcomes}
    assert steps == {1: AT + 1, 2: AT + 1, 3: AT + 1}


def test_a_loop_evaluates_in_a_pause_and_is_held_on() -> None:
    script = PausingLink({AT: [act(1, **PAUSE)]}, [act(2, **EVALUATE), act(3, **RESUME)])
    done = acting(script)
    assert done[:6] == ["step 1", "step 2", "step 3", "step 4", "evaluate", "step 5"]
    assert script.waits == 2


def test_an_exception_is_told_and_goes_on() -> None:
    script = LinkScript()
    training = Training()

    def train() -> None:
        with Loop(training.optimizer, job="job", link_factory=script) as loop:
            training.one(0)
            loop.step(1)
            raise RuntimeError("out of data")

    with pytest.raises(RuntimeError, match="out of data"):
        train()
    assert script.link.closed == ["RuntimeError: out of data"]
    training.one(1)  # the optimizer works without the loop


def test_what_fails_within_does_not_reach_the_loop(caplog: pytest.LogCaptureFixture) -> None:
    def broken(**_: Any) -> Any:
        raise OSError("no link at all")

    training = Training()
    training.steered(broken)  # type: ignore[arg-type]  # a factory that fails
    training.assert_same(Training().plain())
    assert [each.message for each in caplog.records] == [
        "Midcourse failed in optimizer_steps and steers this run no longer; training goes on"
    ]


def test_a_state_that_does_not_fit_switches_steering_off() -> None:
    script = LinkScript({8: [delivery(1, set_change(VALUE))]})
    training = Training()
    state = {"job": "job", "step": 0, "controller": {"version": -1}}
    training.steered(script, state=state)
    training.assert_same(Training().plain())
    assert "version" in script.link.faults[0].message
    assert script.link.outcomes[0].rejected.reason == "STEERING_SWITCHED_OFF"
    with pytest.raises(ValueError, match=r"not what Loop\.state_dict returned"):
        Loop(link_factory=script).load_state_dict({"epoch": 1})


def test_a_scheduler_that_steps_too_late_is_told_of(caplog: pytest.LogCaptureFixture) -> None:
    training = Training()
    scheduler, training.scheduler = training.scheduler, None
    with Loop(training.optimizer, scheduler, job="job", link_factory=LinkScript()) as loop:
        for step in range(1, 8):
            training.one(step - 1)
            loop.step(step)
            scheduler.step()
    (said,) = caplog.messages
    assert said.startswith("scheduler.step() runs after Loop.step()")


def test_a_schedule_by_epochs_is_no_reason_to_complain(caplog: pytest.LogCaptureFixture) -> None:
    training = Training()
    scheduler, training.scheduler = training.scheduler, None
    with Loop(training.optimizer, scheduler, job="job", link_factory=LinkScript()) as loop:
        for step in range(1, 10):
            training.one(step - 1)
            loop.step(step)
            if step % 3 == 0:
                scheduler.step()
    assert not caplog.records


def test_a_step_that_a_scaler_skips_confirms_nothing() -> None:
    script = LinkScript({AT: [delivery(1, set_change(VALUE))]})
    training = Training("none")
    with Loop(training.optimizer, job="job", link_factory=script) as loop:
        for step in range(1, AT + 1):
            training.one(step - 1)
            loop.step(step)
        loop.step(AT + 1, loss=0.5)  # the gradients were not finite: no optimizer step
        assert not script.link.outcomes
        training.one(0)
        loop.step(AT + 2)
    assert script.link.outcomes[0].HasField("applied")


def test_a_loss_that_is_not_finite_is_met(caplog: pytest.LogCaptureFixture) -> None:
    script = PausingLink({}, [act(1, **RESUME)])
    training = Training("none")
    with Loop(training.optimizer, job="job", link_factory=script, protection=Protection()) as loop:
        training.one(0)
        loop.step(1, loss=1.0)
        training.one(1)
        loop.step(2, loss=math.nan)
        training.one(2)
        loop.step(3, loss=1.0)
    assert training.rates == [0.1, 0.1, 0.05]
    assert script.waits == 1


def test_two_runs_in_one_process_do_not_know_of_each_other() -> None:
    scripts = [LinkScript({AT: [delivery(1, set_change(VALUE))]}), LinkScript()]
    for script in scripts:
        Training().steered(script)
    assert len(scripts[0].link.outcomes) == 1
    assert not scripts[1].link.outcomes


def test_a_job_id_is_made_up_and_kept(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "trainer_agent")
    training = Training()
    training.steered(LinkScript(), last=3, job=None, method="toy")
    job = training.state["job"]
    assert f"midcourse watch {job}" in caplog.text
    again = Training()
    again.steered(LinkScript(), first=4, job=None, state=training.state)
    assert again.state["job"] == job


ALONE = """
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"transformers", "trl", "accelerate", "datasets", "grpc"}:
            raise ModuleNotFoundError(f"no {name} here", name=name)

sys.meta_path.insert(0, Refuse())
import runpy, threading, torch
from trainer_agent import loop
from trainer_agent.steering import links
from tests.support.scripted_link import LinkScript, delivery, set_change

script = LinkScript({3: [delivery(1, set_change(0.01))]})
original = loop.Loop.__init__
def init(self, *args, **options):
    original(self, *args, **{**options, "link_factory": script})
loop.Loop.__init__ = init
sys.argv = ["raw_loop.py", "--job", "job", "--steps", "20", "--directory", sys.argv[1]]
runpy.run_path("examples/raw_loop.py", run_name="__main__")
assert script.link.outcomes[0].applied.step == 4, script.link.outcomes
assert len(script.link.metric("loss")) == 20
assert set(script.link.metric("eval_loss")) == {20}
names = [each.name for each in script.link.first_hello.state.parameters]
assert {"learning_rate", "noise"} <= set(names), names
assert threading.active_count() == 1, threading.enumerate()
assert not {"transformers", "trl", "grpc"} & set(sys.modules)
"""


def test_the_example_runs_without_transformers_and_without_grpc(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", ALONE, str(tmp_path)],
        cwd=Path(__file__).parents[2],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "job: 20 of 20 steps are done\n"
    assert (tmp_path / "raw-loop.pt").is_file()
