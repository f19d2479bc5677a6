"""Any sequence of updates and actions over a short run, against a model of what is in force when.

A real trainer, with the real callback, runs what is drawn; the model says what every step should
have used and how every update should have ended. ``MIDCOURSE_EXAMPLES`` draws more of them.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from transformers import Trainer, TrainerCallback

from midcourse.agent.v1 import session_pb2
from midcourse.control.v1 import update_pb2
from midcourse.link.v1 import link_pb2
from tests.support.in_force_model import (
    Asked,
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
    GLOBAL,
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
    Change,
    Coupling,
    GuardRails,
    Multiply,
    Ramp,
    Release,
    Set,
    SetMode,
)
from trainer_agent.parameters.user import Parameter
from trainer_agent.steering.convert import change_to_proto

STEPS = 14
SAMPLES = 22
EXAMPLES = int(os.environ.get("MIDCOURSE_EXAMPLES", "30"))
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


# ---- What is drawn ----

rates = st.sampled_from([0.003, 0.02, 0.07, 0.3, 0.9, 3.0])
targets: dict[str, st.SearchStrategy[Any]] = {
    DECAY: st.sampled_from([0.01, 0.05, 0.3, 0.5, -1.0]),
    CLIP: st.sampled_from([0.05, 0.5, 2.0, 0.0, -1.0]),
    ACCUMULATION: st.sampled_from([1, 2, 3, 4, 5, 0, 1.5]),
    GLOBAL: st.sampled_from([4, 8, 12, 16, 6]),
    BATCH: st.sampled_from([2, 3, 4, 6, 22]),
    LOGGING: st.sampled_from([1, 2, 3, 5, 0]),
    MAX_STEPS: st.sampled_from([3, 8, 12, STEPS + 1, STEPS + 4]),
    LEVEL: st.sampled_from([0, 1, 5, BROKEN_LEVEL, 12]),
    PHASE: st.sampled_from([*PHASES, "hot"]),
    PINNED: st.just(0.25),
    "no_such_parameter": st.just(1.0),
}
couplings = st.sampled_from([Coupling.NONE, Coupling.NONE, Coupling.LINEAR, Coupling.SQRT])


@st.composite
def rate_changes(draw: st.DrawFn) -> Change:
    match draw(st.sampled_from(["set", "peak", "hold", "multiply", "ramp", "release"])):
        case "set":
            return Set(RATE, draw(rates))
        case "peak":
            return Set(RATE, draw(rates), SetMode.PEAK)
        case "hold":
            return Set(RATE, draw(rates), SetMode.HOLD, draw(st.none() | st.integers(1, 4)))
        case "multiply":
            return Multiply(RATE, draw(st.sampled_from([0.5, 3.0, 30.0])))
        case "ramp":
            return Ramp(RATE, draw(rates), draw(st.integers(1, 5)))
        case _:
            return Release(RATE)


@st.composite
def other_changes(draw: st.DrawFn, name: str) -> Change:
    kind = draw(st.sampled_from(["set", "set", "set", "set", "multiply", "release", "ramp"]))
    coupling = draw(couplings) if name in {ACCUMULATION, GLOBAL, BATCH} else Coupling.NONE
    match kind:
        case "multiply":
            return Multiply(name, draw(st.sampled_from([0.5, 2.0])), coupling=coupling)
        case "release":
            return Release(name)
        case "ramp":
            return Ramp(name, 0.3, 2)
        case _:
            return Set(name, draw(targets[name]), coupling=coupling)


names = st.sampled_from([RATE, RATE, RATE, *targets])


@st.composite
def updates(draw: st.DrawFn, revision: int) -> Asked:
    asked = draw(st.lists(names, unique=True, min_size=0, max_size=3))
    changes = tuple(draw(rate_changes() if name == RATE else other_changes(name)) for name in asked)
    action = None
    if not changes or draw(st.integers(0, 5)) == 0:
        kinds = ["pause", "resume", "save_checkpoint", "evaluate", "pause", "evaluate"]
        action = draw(st.sampled_from([*kinds, "stop", "roll_back"]))
    at_step = draw(st.none() | st.none() | st.integers(1, STEPS + 2))
    max_step = draw(st.none() | st.none() | st.none() | st.integers(1, STEPS))
    return Asked(
        revision,
        changes,
        action,
        at_step=at_step,
        max_step=max_step,
        overdue=draw(st.integers(0, 9)) == 0,
        author=draw(st.sampled_from(["ann", "bob"])),
        force=draw(st.booleans()),
    )


@dataclass(frozen=True)
class Script:
    """What arrives, and when."""

    decreasing: bool
    arrivals: Mapping[int, Sequence[Event]]
    while_held: Sequence[Sequence[Event]]


@st.composite
def scripts(draw: st.DrawFn) -> Script:
    count = draw(st.integers(1, 10))
    asked = [draw(updates(revision)) for revision in range(1, count + 1)]
    held = draw(st.integers(0, 3))
    places = st.integers(1, STEPS) | st.integers(1, STEPS) | st.integers(-held, -1 if held else 1)
    events: list[tuple[int, Event]] = []
    for each in asked:
        at = draw(places)
        events.append((at, Delivery(each)))
        match draw(st.sampled_from(["", "", "", "again", "later", "withdrawn"])):
            case "again":
                events.append((at, Delivery(each)))
            case "later":
                events.append((draw(places), Delivery(each)))
            case "withdrawn":
                events.append((draw(places), Withdrawal(each.revision)))
            case _:
                pass
    at_place = {
        place: [each for where, each in events if where == place]
        for place in {where for where, _ in events}
    }
    return Script(
        decreasing=draw(st.booleans()),
        arrivals={place: each for place, each in at_place.items() if place > 0},
        while_held=[at_place.get(-index, []) for index in range(1, held + 1)],
    )


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


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module", autouse=True)
def _no_environment() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for name in ("JOB_ID", "MIDCOURSE_CONTROL_PLANE", "MIDCOURSE_ROLL_BACK_FILE"):
            patch.delenv(name, raising=False)
        yield


def go_through(script: Script) -> Model:
    """Run a script and its model, and compare them."""
    model = Model(setting(decreasing=script.decreasing), script.arrivals, script.while_held)
    model.run()
    with tempfile.TemporaryDirectory() as directory:
        compare(model, run(script, Path(directory)))
    return model


@pytest.mark.timeout(900)  # shrinking a failure takes its time
@settings(
    max_examples=EXAMPLES,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(scripts())
def test_any_sequence_is_in_force_as_it_should_be(script: Script) -> None:
    model = go_through(script)
    for each in model.ended.values():
        event(f"{each.how} {each.why}")


# ---- What was once found this way ----


def deliver(revision: int, *changes: Change, action: str | None = None, **fields: Any) -> Delivery:
    return Delivery(Asked(revision, changes, action, author="ann", **fields))


def test_an_update_whose_deadline_passed_on_the_way_is_not_applied() -> None:
    late = deliver(1, Set(RATE, 0.02), overdue=True)
    model = go_through(Script(False, {3: [late]}, []))
    assert model.ended[1] == Ended("expired", why="DEADLINE")


@pytest.mark.parametrize("together", [True, False])
def test_names_for_the_same_thing_move_one_another_at_one_boundary(together: bool) -> None:
    """What a later change goes over was applied all the same, and is not taken for a failure."""
    first, second = Set(GLOBAL, 4), Set(ACCUMULATION, 3)
    arriving = [deliver(1, first, second)] if together else [deliver(1, first), deliver(2, second)]
    model = go_through(Script(False, {3: arriving}, []))
    assert {each.how for each in model.ended.values()} == {"applied"}
    assert model.used[3].batches == (4, 4, 4)


def test_who_thinks_better_of_a_change_that_waits_is_not_overruled_by_it(tmp_path: Path) -> None:
    """The first can not begin at once, the second can: what was asked for last is what stays."""
    arriving = [deliver(1, Set(ACCUMULATION, 4)), deliver(2, Set(ACCUMULATION, 1))]
    script = Script(False, {1: arriving}, [])
    ran = run(script, tmp_path)
    assert ran.witness.used[-1].values[ACCUMULATION] == 1
    (superseded,) = [each.rejected for each in ran.link.outcomes if each.revision == 1]
    assert (superseded.reason, superseded.parameter) == ("SUPERSEDED", ACCUMULATION)
    assert "update 2" in superseded.message
    assert go_through(script).ended[2].how == "applied"


@pytest.mark.parametrize(
    ("waits", "newer"),
    [
        (Set(GLOBAL, 16), Set(ACCUMULATION, 1)),
        (Set(ACCUMULATION, 4), Set(GLOBAL, 4)),
        (Set(BATCH, 2), Set(GLOBAL, 4)),
        (Set(ACCUMULATION, 4, coupling=Coupling.LINEAR), Set(RATE, 0.01)),
    ],
)
def test_what_waits_gives_way_to_what_is_newer_under_another_name(
    waits: Change, newer: Change
) -> None:
    model = go_through(Script(False, {1: [deliver(1, waits), deliver(2, newer)]}, []))
    assert model.ended[1] == Ended("rejected", 1, "SUPERSEDED", waits.parameter)
    assert model.ended[2].how == "applied"


def test_what_waits_stays_where_the_newer_leaves_it_what_it_asked_for() -> None:
    """A batch for each device, from the next epoch on, is none of the accumulation's business."""
    script = {1: [deliver(1, Set(BATCH, 2)), deliver(2, Set(ACCUMULATION, 1))]}
    model = go_through(Script(False, script, []))
    assert {each.how for each in model.ended.values()} == {"applied"}


@pytest.mark.parametrize("more", [1, 2, 3])
def test_a_stop_in_front_of_a_step_comes_after_it(more: int) -> None:
    held = [deliver(1, action="pause"), deliver(2, Set(RATE, 0.02), action="save_checkpoint")]
    again = [[deliver(each, action="save_checkpoint")] for each in range(3, 2 + more)]
    last = [deliver(9, action="stop"), deliver(10, Set(RATE, 0.03))]
    for step in (1, 2, 3, 4):
        model = go_through(Script(False, {step: held}, [*again, last]))
        assert model.ended[9].how == "applied"


def test_what_is_scheduled_for_a_later_step_is_not_superseded() -> None:
    """Who names a step means it, whatever else is changed before."""
    arriving = [deliver(1, Set(ACCUMULATION, 3), at_step=7), deliver(2, Set(ACCUMULATION, 1))]
    model = go_through(Script(False, {1: arriving}, []))
    assert {each.how for each in model.ended.values()} == {"applied"}
    assert model.used[-1].values[ACCUMULATION] == 3


def test_what_an_earlier_change_makes_possible_is_not_refused_while_both_wait() -> None:
    """Samples of 6 are no whole micro-batches of 4; of the 2 that come with them they are."""
    model = go_through(Script(False, {2: [deliver(1, Set(BATCH, 2), Set(GLOBAL, 6))]}, []))
    assert (model.ended[1].how, model.ended[1].step) == ("applied", 4)
    assert model.used[-1].values[ACCUMULATION] == 3


def test_in_the_other_order_it_is_refused_at_once() -> None:
    model = go_through(Script(False, {2: [deliver(1, Set(GLOBAL, 6), Set(BATCH, 2))]}, []))
    assert (model.ended[1].why, model.ended[1].step) == ("NOT_DIVISIBLE", 2)


def test_a_limit_on_how_far_a_value_may_move_is_for_the_boundary_where_it_moves() -> None:
    """A held update may be within it by then: what is in force may be another value."""
    far = deliver(1, Set(RATE, 0.003), Set(BATCH, 2))
    alone = go_through(Script(False, {1: [far]}, []))
    assert (alone.ended[1].why, alone.ended[1].step) == ("GUARD_RAIL", 3)


def test_what_the_rate_may_not_follow_to_is_told_before_it_is_due(tmp_path: Path) -> None:
    coupled = deliver(1, Set(BATCH, 8, coupling=Coupling.LINEAR))
    ran = run(
        Script(False, {1: [coupled]}, []), tmp_path, {RATE: GuardRails(max_relative_change=1.5)}
    )
    (outcome,) = ran.link.outcomes
    assert (outcome.rejected.reason, outcome.rejected.step) == ("GUARD_RAIL", 1)
    assert outcome.rejected.parameter == RATE


def test_two_couplings_together_stay_within_the_limit_for_one(tmp_path: Path) -> None:
    both = [Set(name, 8, coupling=Coupling.LINEAR) for name in (BATCH, ACCUMULATION)]
    rails = {RATE: GuardRails(max_relative_change=5)}
    ran = run(Script(False, {1: [deliver(1, *both)]}, []), tmp_path, rails)
    (outcome,) = ran.link.outcomes
    assert outcome.rejected.reason == "GUARD_RAIL", outcome
    assert "8 times" in outcome.rejected.message
    assert {rate for rates in ran.witness.rates for rate in rates} == {0.1}


@pytest.mark.parametrize(
    ("paused_at", "change", "first_step"),
    [(1, Set(ACCUMULATION, 4), 3), (2, Set(BATCH, 2), 4)],
    ids=["accumulation", "batch size"],
)
def test_data_that_is_taken_already_is_used_before_its_sizes_change(
    paused_at: int, change: Change, first_step: int
) -> None:
    """A pause that goes on after an evaluation holds the run with its next data in hand."""
    held = [[deliver(2, action="evaluate")], [deliver(3, change)]]
    model = go_through(Script(False, {paused_at: [deliver(1, action="pause")]}, held))
    assert model.ended[3].step == first_step


@pytest.mark.parametrize(
    "rails",
    [
        GuardRails(frozen=True),
        GuardRails(max_relative_change=1.5),
        GuardRails(allowed_principals=("bob",)),
    ],
    ids=["frozen", "relative", "principals"],
)
def test_a_rate_that_follows_the_batch_size_stays_within_its_owners_limits(
    rails: GuardRails, tmp_path: Path
) -> None:
    coupled = deliver(1, Set(ACCUMULATION, 6, coupling=Coupling.LINEAR))
    ran = run(Script(False, {3: [coupled]}, []), tmp_path, {RATE: rails})
    (outcome,) = ran.link.outcomes
    assert outcome.WhichOneof("result") == "rejected", outcome
    assert {rate for rates in ran.witness.rates for rate in rates} == {0.1}
    assert {each.values[ACCUMULATION] for each in ran.witness.used} == {2}
