"""A real run with the real callback, to which a script sends what it says, beside its model."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Trainer, TrainerCallback

from midcourse.agent.v1 import session_pb2
from midcourse.control.v1 import update_pb2
from midcourse.link.v1 import link_pb2
from tests.support.in_force_model import (
    Delivery,
    Ended,
    Event,
    Model,
    Used,
    Withdrawal,
    forced_resume,
)
from tests.support.in_force_values import (
    ACCUMULATION,
    BATCH,
    BROKEN_LEVEL,
    CLIP,
    DECAY,
    LEVEL,
    LOGGING,
    MAX_STEPS,
    PHASE,
    PHASES,
    PINNED,
    RATE,
    Setting,
)
from tests.support.plain_trainer import Points, plain_trainer
from tests.support.scripted_link import ScriptedLink, delivery, withdrawal
from tests.trainer_agent.parameters.data_runs import Numbered, Recorder
from trainer_agent import attach
from trainer_agent.parameters import (
    GuardRails,
)
from trainer_agent.parameters.user import Parameter
from trainer_agent.steering.convert import change_to_proto

STEPS = 14
SAMPLES = 22
RAILS = {
    RATE: GuardRails(maximum=1.0, max_relative_change=20.0),
    CLIP: GuardRails(allowed_principals=("ann",)),
    DECAY: GuardRails(minimum=0.02, maximum=0.4),
    PINNED: GuardRails(frozen=True),
}
VALUES: Mapping[str, Any] = {
    DECAY: 0.1,
    CLIP: 1.0,
    ACCUMULATION: 2,
    BATCH: 4,
    LOGGING: 1,
    MAX_STEPS: STEPS,
    LEVEL: 2,
    PHASE: "warm",
    PINNED: 0.5,
}


def setting(*, decreasing: bool) -> Setting:
    return Setting(
        samples=SAMPLES,
        max_steps=STEPS,
        decreasing=decreasing,
        rate=0.1,
        values=VALUES,
        rails=RAILS,
        unavailable=frozenset({"roll_back"}),
    )


@dataclass(frozen=True)
class Script:
    """What arrives, and when."""

    decreasing: bool
    arrivals: Mapping[int, Sequence[Event]]
    while_held: Sequence[Sequence[Event]]


# ---- The real run ----


def message(of: Event) -> link_pb2.AgentMessage:
    if isinstance(of, Withdrawal):
        return withdrawal(of.revision)
    asked, action = of.asked, None
    if asked.action is not None:
        action = update_pb2.Action()
        getattr(action, asked.action).SetInParent()
    return delivery(
        asked.revision,
        *map(change_to_proto, asked.changes),
        at_step=asked.at_step,
        max_step=asked.max_step,
        action=action,
        deadline=0 if asked.overdue else None,
        author=asked.author,
        force=asked.force,
    )


class EndingLink(ScriptedLink):
    """A scripted link that ends every pause, and does not ask for all of the state to poll."""

    def __init__(
        self, script: Script, trainer: Trainer, hello: Callable[[], link_pb2.TrainerHello]
    ) -> None:
        arrivals = {at: list(map(message, each)) for at, each in script.arrivals.items()}
        super().__init__(arrivals, hello, [list(map(message, each)) for each in script.while_held])
        self._trainer = trainer
        self._resumes = 0

    def poll(self) -> Sequence[link_pb2.AgentMessage]:
        arrived, self._arrived = self._arrived, []
        return [*arrived, *self._script.pop(self._trainer.state.global_step, ())]

    def wait(self, seconds: float) -> None:
        if not self._while_held:
            self._resumes += 1
            self._while_held.append([message(Delivery(forced_resume(self._resumes)))])
        super().wait(seconds)


class Witness(TrainerCallback):
    """Writes down what every optimizer step uses, where the loop itself reads it."""

    def __init__(self, model: Recorder, own: dict[str, Any], link: Callable[[], Any]) -> None:
        self.used: list[Used] = []
        self.rates: list[list[float]] = []
        self.logged: set[int] = set()
        self.saved: set[int] = set()
        self._model = model
        self._own = own
        self._link = link

    def on_pre_optimizer_step(
        self, args: Any, state: Any, control: Any, optimizer: Any = None, **_: Any
    ) -> None:
        seen, self._model.seen = self._model.seen, []
        decaying, never = optimizer.param_groups
        assert never["weight_decay"] == 0.0
        self.rates.append([group["lr"] for group in optimizer.param_groups])
        values = {
            RATE: decaying["lr"],
            DECAY: decaying["weight_decay"],
            CLIP: args.max_grad_norm,
            ACCUMULATION: args.gradient_accumulation_steps,
            BATCH: args.per_device_train_batch_size,
            LOGGING: state.logging_steps,
            MAX_STEPS: state.max_steps,
            **self._own,
        }
        in_force = {
            revision
            for each in self._link().hello().state.in_force
            for revision in range(each.first, each.last + 1)
        }
        self.used.append(Used(values, tuple(map(len, seen)), frozenset(in_force), logs=False))

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        if logs and "loss" in logs:
            self.logged.add(state.global_step)

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.saved.add(state.global_step)


@dataclass
class Ran:
    """A real run."""

    link: EndingLink
    witness: Witness
    in_force: frozenset[int]
    directory: Path


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    """With one thread, and with nothing in the environment that a run would look for."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with pytest.MonkeyPatch.context() as patch:
            for name in ("JOB_ID", "MIDCOURSE_CONTROL_PLANE", "MIDCOURSE_ROLL_BACK_FILE"):
                patch.delenv(name, raising=False)
            yield
    finally:
        torch.set_num_threads(threads)


@_undisturbed()
def run(
    script: Script, directory: Path, rails: Mapping[str, GuardRails] = RAILS, **args: Any
) -> Ran:
    own: dict[str, Any] = {name: VALUES[name] for name in (LEVEL, PHASE, PINNED)}

    def set_level(value: Any) -> None:
        if value == BROKEN_LEVEL:
            raise RuntimeError("this level is broken")
        own[LEVEL] = value

    def sets(name: str) -> Callable[[Any], None]:
        return lambda value: own.__setitem__(name, value)

    parameters = [
        Parameter(LEVEL, lambda: own[LEVEL], set_level, minimum=0, maximum=9),
        Parameter(PHASE, lambda: own[PHASE], sets(PHASE), choices=PHASES, boundary="epoch"),
        Parameter(PINNED, lambda: own[PINNED], sets(PINNED)),
    ]
    model = Recorder()
    trainer = plain_trainer(
        directory,
        model=model,
        train_dataset=Numbered(SAMPLES),
        eval_dataset=Points(2),
        max_steps=STEPS,
        learning_rate=0.1,
        lr_scheduler_type="linear" if script.decreasing else "constant",
        weight_decay=VALUES[DECAY],
        gradient_accumulation_steps=VALUES[ACCUMULATION],
        per_device_train_batch_size=VALUES[BATCH],
        remove_unused_columns=False,
        **args,
    )
    links: list[EndingLink] = []

    def link_factory(*, hello: Callable[[], link_pb2.TrainerHello], **_: Any) -> EndingLink:
        links.append(EndingLink(script, trainer, hello))
        return links[-1]

    callback = attach(
        trainer, "job", guard_rails=rails, parameters=parameters, link_factory=link_factory
    )
    witness = Witness(model, own, lambda: links[0])
    trainer.add_callback(witness)
    trainer.train()
    assert not links[0].faults
    ranges = callback.state()["steering"]["controller"]["lineage"]["in_force"]
    in_force = frozenset(each for first, last in ranges for each in range(first, last + 1))
    return Ran(links[0], witness, in_force, directory)


# ---- The comparison ----


def value_of(value: Any) -> Any:
    kind = value.WhichOneof("kind")
    return None if kind is None else getattr(value, kind)


def ended(outcome: session_pb2.UpdateOutcome, directory: Path) -> Ended:
    how = outcome.WhichOneof("result")
    match how:
        case "applied":
            applied = outcome.applied
            moved: dict[str, tuple[Any, Any]] = {}
            for each in applied.transitions:
                found = (value_of(each.old_value), value_of(each.new_value))
                assert moved.setdefault(each.parameter, found) == found, "the same in every group"
            saved = applied.action_result.checkpoint
            if saved:
                assert Path(saved).parent == directory
                assert (Path(saved) / "trainer_state.json").is_file()
            return Ended(
                "applied",
                applied.step,
                moved=moved,
                saved=int(saved.rpartition("-")[2]) if saved else None,
                evaluated="eval_loss" in applied.action_result.metrics,
            )
        case "rejected":
            rejected = outcome.rejected
            assert rejected.message
            return Ended("rejected", rejected.step, rejected.reason, rejected.parameter)
        case "expired":
            cause = update_pb2.ExpiryCause.Name(outcome.expired.cause)
            return Ended("expired", why=cause.removeprefix("EXPIRY_CAUSE_"))
        case _:
            assert how == "withdrawn"
            return Ended("withdrawn")


def close(value: Any) -> Any:
    """Only the learning rate is computed here in another way than there."""
    return pytest.approx(value, rel=1e-9) if isinstance(value, float) else value


def compare(model: Model, ran: Ran) -> None:
    for step, (wanted, got) in enumerate(zip(model.used, ran.witness.used, strict=False), 1):
        for name, value in wanted.values.items():
            assert got.values[name] == close(value), f"step {step} used {name} otherwise"
        assert got.batches == wanted.batches, f"step {step} had other micro-batches"
        assert got.in_force == wanted.in_force, f"in force at step {step}"
    assert len(ran.witness.used) == len(model.used), "the run has as many steps"
    assert all(len(set(each)) == 1 for each in ran.witness.rates)
    assert ran.witness.logged == {step for step, each in enumerate(model.used, 1) if each.logs}
    assert ran.witness.saved == model.saves

    told: dict[int, list[session_pb2.UpdateOutcome]] = {}
    for outcome in ran.link.outcomes:
        told.setdefault(outcome.revision, []).append(outcome)
    assert told.keys() == model.ended.keys()
    for revision, outcomes in told.items():
        assert all(each == outcomes[0] for each in outcomes), "once told, it stays so"
        assert len(outcomes) == model.told[revision]
        got_end, wanted_end = ended(outcomes[0], ran.directory), model.ended[revision]
        for name, values in wanted_end.moved.items():
            if name != RATE and DECAY not in wanted_end.moved:
                assert got_end.moved[name] == values
            assert got_end.moved[name] == close_pair(values), f"update {revision} moved {name}"
        assert got_end.moved.keys() == wanted_end.moved.keys()
        rest = {**vars(wanted_end), "moved": got_end.moved}
        assert vars(got_end) == rest, f"update {revision}"
    assert ran.in_force == model.in_force


def close_pair(values: tuple[Any, Any]) -> tuple[Any, Any]:
    return close(values[0]), close(values[1])


def go_through(script: Script) -> Model:
    """Run a script and its model, and compare them."""
    model = Model(setting(decreasing=script.decreasing), script.arrivals, script.while_held)
    model.run()
    with tempfile.TemporaryDirectory() as directory:
        compare(model, run(script, Path(directory)))
    return model
