"""Changes, actions and pauses in whatever order, and a parameter that opens late."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from midcourse.control.v1 import update_pb2
from tests.support.plain_loop import START_RATE, PlainLoop
from tests.support.scripted_link import pause, resume, save_checkpoint, set_change
from trainer_agent.parameters import EVERY_GROUP, Boundary, Change, Value
from trainer_agent.parameters.value import ValueParameter
from trainer_agent.steering.actions import ActionKind, Actions

STEPS = 8
EVERY = 3
START_LEVEL = 1.0
ACTIONS = {"pause": pause(), "resume": resume(), "save": save_checkpoint(), None: None}


class Level(ValueParameter):
    """Changes only at every third boundary."""

    name = "level"
    description = "opens late"
    minimum = 0.0

    def __init__(self) -> None:
        super().__init__()
        self.value: Value = START_LEVEL

    def get(self) -> Mapping[str, Value | None]:
        return {EVERY_GROUP: self.value}

    def put(self, values: Mapping[str, Value]) -> None:
        self.value = values[EVERY_GROUP]

    def opens(self, change: Change, boundary: Boundary) -> bool:
        return boundary.global_step % EVERY == 0


@dataclass(frozen=True)
class Asked:
    """An update."""

    revision: int
    rate: bool
    level: bool
    possible: bool
    action: str | None
    max_step: int | None

    @property
    def changes(self) -> list[update_pb2.Change]:
        value = self.revision / 100 if self.possible else -1.0
        changes = [set_change(value)] if self.rate else []
        return [*changes, set_change(value, parameter="level")] if self.level else changes


@dataclass
class Model:
    """The same, said plainly."""

    updates: dict[int, Asked]
    held: set[int] = field(default_factory=set)
    settled: dict[int, str] = field(default_factory=dict)
    fresh: dict[int, int] = field(default_factory=dict)
    saves: int = 0
    rate: float = START_RATE
    level: float = START_LEVEL
    paused: bool = False

    def deliver(self, revision: int) -> None:
        if revision not in self.settled and revision not in self.fresh:
            self.held.add(revision)

    def step_ran(self) -> None:
        self.settled.update({revision: f"applied {step}" for revision, step in self.fresh.items()})
        self.fresh.clear()

    def boundary(self, done: int) -> None:
        for revision in sorted(self.held):
            asked = self.updates[revision]
            if not asked.changes and asked.action is None:
                result = "rejected"
            elif asked.max_step is not None and done + 1 > asked.max_step:
                result = "expired"
            elif not asked.possible and asked.changes:
                result = "rejected"
            elif asked.level and done % EVERY:
                continue
            else:
                self.held.discard(revision)
                self.apply(asked, done)
                self.supersede(asked)
                continue
            self.held.discard(revision)
            self.settled[revision] = result

    def supersede(self, newer: Asked) -> None:
        for revision in [each for each in self.held if each < newer.revision]:
            asked = self.updates[revision]
            if (asked.rate and newer.rate) or (asked.level and newer.level):
                self.held.discard(revision)
                self.settled[revision] = "rejected"

    def apply(self, asked: Asked, done: int) -> None:
        self.rate = asked.revision / 100 if asked.rate else self.rate
        self.level = asked.revision / 100 if asked.level else self.level
        self.paused = {"pause": True, "resume": False}.get(str(asked.action), self.paused)
        self.saves += asked.action == "save"
        if asked.changes:
            self.fresh[asked.revision] = done + 1
        else:
            self.settled[asked.revision] = f"applied {done + 1}"


def updates() -> st.SearchStrategy[dict[int, Asked]]:
    often = st.integers(0, 4).map(bool)
    return st.fixed_dictionaries(
        {
            revision: st.builds(
                Asked,
                revision=st.just(revision),
                rate=st.booleans(),
                level=st.booleans(),
                possible=often,
                action=st.sampled_from(list(ACTIONS)),
                max_step=st.none() | st.integers(1, STEPS + 1),
            )
            for revision in range(1, 9)
        }
    )


ARRIVALS = st.lists(st.lists(st.integers(1, 8), max_size=4), max_size=2 * STEPS)


@settings(deadline=None, max_examples=150)
@given(asked=updates(), arrivals=ARRIVALS)
def test_against_the_model(asked: dict[int, Asked], arrivals: list[list[int]]) -> None:
    level = Level()
    actions = Actions(
        {ActionKind.PAUSE: None, ActionKind.RESUME: None, ActionKind.SAVE_CHECKPOINT: None}
    )
    loop = PlainLoop(max_steps=STEPS, extra={"level": level}, actions=actions)
    model = Model(asked)
    used: dict[int, tuple[float, Any]] = {}
    saved = 0

    def boundary() -> None:
        nonlocal saved
        for revision in arrivals.pop(0) if arrivals else ():
            each = asked[revision]
            loop.deliver(
                revision, *each.changes, action=ACTIONS[each.action], max_step=each.max_step
            )
            model.deliver(revision)
        loop.at_boundary()
        model.boundary(loop.global_step)
        waiting = [each for each in loop.controller.unsettled() if asked[each].action == "save"]
        if actions.wanted:
            assert waiting, "what is wanted, somebody waits for"
            result = update_pb2.ActionResult(checkpoint=f"checkpoint-{loop.global_step}")
            loop.controller.action_done(ActionKind.SAVE_CHECKPOINT, result)
            loop.outcomes += loop.controller.take_outcomes()
            saved += 1
        assert (loop.rate, level.value) == (model.rate, model.level)
        assert actions.paused is model.paused
        assert loop.held() == sorted(model.held)
        assert loop.controller.unsettled() == sorted(model.held | model.fresh.keys())

    while loop.global_step < STEPS:
        boundary()
        while actions.paused and arrivals:
            boundary()
        actions.paused = model.paused = False  # whoever is left waiting goes home
        used[loop.global_step + 1] = (loop.rate, level.value)
        loop.optimizer.step()
        loop.controller.optimizer_stepped()
        loop.global_step += 1
        model.step_ran()
    loop.finish()
    model.settled.update(dict.fromkeys(model.held, "expired"))

    told: dict[int, set[str]] = {}
    for outcome in loop.outcomes:
        kind = str(outcome.WhichOneof("result"))
        said = f"applied {outcome.applied.step}" if kind == "applied" else kind
        told.setdefault(outcome.revision, set()).add(said)
        if kind == "applied":
            each = asked[outcome.revision]
            step = outcome.applied.step
            checkpoint = outcome.applied.action_result.checkpoint
            assert checkpoint == (f"checkpoint-{step - 1}" if each.action == "save" else "")
            moved = {each.parameter for each in outcome.applied.transitions}
            assert moved == {each.parameter for each in asked[outcome.revision].changes}
    assert told == {revision: {result} for revision, result in model.settled.items()}
    assert saved <= model.saves
    in_force = {
        revision
        for each in loop.controller.in_force()
        for revision in range(each.first, each.last + 1)
    }
    assert in_force == {
        revision for revision, result in model.settled.items() if result.startswith("applied")
    }
