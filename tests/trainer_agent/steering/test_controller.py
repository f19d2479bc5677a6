from __future__ import annotations

import io
import json
from typing import Any

import pytest
import torch

from midcourse.control.v1 import update_pb2
from tests.support.plain_loop import START_RATE, PlainLoop
from tests.support.scripted_link import (
    multiply_change,
    ramp_change,
    save_checkpoint,
    set_change,
)
from trainer_agent.parameters import (
    EVERY_GROUP,
    Applied,
    Boundary,
    Change,
    Kind,
    ParameterSpec,
    Reading,
    UndoError,
)
from trainer_agent.steering.actions import ActionKind, Actions
from trainer_agent.steering.held import MAX_HELD


def falling(done: int) -> float:
    return 1.0 - done / 100


@pytest.fixture
def loop() -> PlainLoop:
    return PlainLoop(falling)


class Brittle:
    """A live parameter that fails where it is told to."""

    name = "brittle"

    def __init__(self, **failures: Exception) -> None:
        self._failures = failures
        self.value = 1.0

    def _do(self, what: str) -> None:
        if what in self._failures:
            raise self._failures[what]

    def spec(self) -> ParameterSpec:
        return ParameterSpec(self.name, Kind.FLOAT, "breaks")

    def check(self, change: Change, boundary: Boundary) -> None:
        self._do("check")

    def opens(self, change: Change, boundary: Boundary) -> bool:
        return True

    def apply(self, change: Change, boundary: Boundary) -> Applied:
        self._do("apply")
        old, self.value = self.value, 2.0
        return Applied(
            change, boundary, Reading({EVERY_GROUP: old}), Reading({EVERY_GROUP: 2.0}), old
        )

    def undo(self, applied: Applied) -> None:
        self._do("undo")
        assert isinstance(applied.before, float)
        self.value = applied.before

    def read(self, *, synchronise: bool = False) -> Reading:
        self._do("read")
        return Reading({EVERY_GROUP: self.value})

    def tick(self, boundary: Boundary) -> None:
        self._do("tick")

    def verify(self, applied: Applied, used: Reading, boundary: Boundary) -> str | None:
        self._do("verify")
        return None

    def state_dict(self) -> dict[str, Any]:
        self._do("state_dict")
        return {"value": self.value}

    def load_state_dict(self, state: Any) -> None:
        self.value = state["value"]

    def detach(self) -> None:
        self._do("detach")


def test_applied_is_said_only_after_a_step_has_used_it(loop: PlainLoop) -> None:
    loop.steps(3)
    before = loop.rate
    loop.deliver(1, set_change(0.25))
    loop.step()
    assert loop.rate == 0.25
    assert not loop.outcomes
    assert [(each.first, each.last) for each in loop.controller.in_force()] == [(1, 1)]
    loop.step()
    applied = loop.outcome(1).applied
    assert applied.step == 5
    assert loop.used[4] == before
    assert loop.used[5] == 0.25
    (transition,) = applied.transitions
    assert transition.old_value.number == START_RATE * falling(4)
    assert transition.new_value.number == 0.25
    assert applied.apply_time.seconds == 1_700_000_000
    assert applied.instance_id == "instance"


def test_due_updates_apply_in_order_of_revision_and_a_later_one_holds_none_up(
    loop: PlainLoop,
) -> None:
    loop.deliver(1, set_change(0.1), at_step=6)
    loop.deliver(3, multiply_change(0.5))
    loop.deliver(2, set_change(0.4))
    loop.at_boundary()
    assert loop.rate == 0.2
    assert loop.held() == [1]
    loop.steps(1)
    assert [(each.revision, each.applied.step) for each in loop.outcomes] == [(2, 1), (3, 1)]
    loop.steps(5)
    assert loop.used[6] == 0.1
    assert loop.outcome(1).applied.step == 6


def test_a_step_that_has_gone_by_means_the_next_one(loop: PlainLoop) -> None:
    loop.steps(5)
    loop.deliver(1, set_change(0.25), at_step=2)
    loop.steps(2)
    assert loop.outcome(1).applied.step == 7


def test_what_varies_with_time_moves_at_every_boundary() -> None:
    loop = PlainLoop()
    loop.deliver(1, ramp_change(0.1, 4))
    loop.at_boundary()
    loop.steps(5)
    assert loop.used == {
        step: pytest.approx(rate) for step, rate in enumerate([0.4, 0.3, 0.2, 0.1, 0.1], start=1)
    }


def test_several_changes_are_all_made_or_none(loop: PlainLoop) -> None:
    loop.steps(2)
    before = loop.rate
    loop.deliver(1, multiply_change(0.5), set_change(-1.0))
    loop.at_boundary()
    assert loop.rate == before
    rejected = loop.outcome(1).rejected
    assert rejected.reason == "INVALID_VALUE"
    assert "must not be negative, got -1.0" in rejected.message
    assert rejected.parameter == "learning_rate"
    assert [each.value.number for each in rejected.in_force] == [before]
    assert rejected.step == 2
    assert not loop.controller.in_force()


def test_transitions_of_several_changes_go_from_the_first_to_the_last(loop: PlainLoop) -> None:
    loop.deliver(1, set_change(0.2), multiply_change(0.5))
    loop.at_boundary()
    loop.step()
    (transition,) = loop.outcome(1).applied.transitions
    assert transition.old_value.number == START_RATE
    assert transition.new_value.number == 0.1


@pytest.mark.parametrize(
    ("options", "reason", "says"),
    [
        (
            {"action": update_pb2.Action(pause=update_pb2.PauseAction())},
            "ACTION_UNAVAILABLE",
            "pause can not be carried out",
        ),
        ({"action": update_pb2.Action()}, "ACTION_UNKNOWN", "it knows: pause, resume"),
        ({}, "EMPTY_UPDATE", "asks for nothing"),
    ],
)
def test_what_this_trainer_can_not_do_is_rejected(
    loop: PlainLoop, options: dict[str, Any], reason: str, says: str
) -> None:
    changes = [set_change(0.25)] if options else []
    loop.deliver(1, *changes, at_step=50, **options)
    loop.at_boundary()
    rejected = loop.outcome(1).rejected
    assert rejected.reason == reason
    assert says in rejected.message
    assert loop.rate == START_RATE


def test_an_unknown_parameter_is_rejected(loop: PlainLoop) -> None:
    loop.deliver(1, set_change(1.0, parameter="dropout"))
    loop.at_boundary()
    rejected = loop.outcome(1).rejected
    assert rejected.reason == "UNKNOWN_PARAMETER"
    assert rejected.parameter == "dropout"
    assert "learning_rate" in rejected.message


@pytest.mark.parametrize(
    "change",
    [
        update_pb2.Change(parameter="learning_rate"),
        update_pb2.Change(parameter="learning_rate", set=update_pb2.SetChange()),
        update_pb2.Change(parameter="learning_rate", schedule=update_pb2.ScheduleChange(floor=0.1)),
        update_pb2.Change(
            parameter="learning_rate",
            multiply=update_pb2.MultiplyChange(factor=2.0),
            coupling=update_pb2.COUPLING_LINEAR,
        ),
    ],
)
def test_what_a_change_leaves_open_is_never_guessed(
    loop: PlainLoop, change: update_pb2.Change
) -> None:
    loop.deliver(1, change)
    loop.at_boundary()
    assert loop.outcome(1).rejected.parameter == "learning_rate"
    assert loop.rate == START_RATE


def test_past_its_deadline_it_expires(loop: PlainLoop) -> None:
    loop.deliver(1, set_change(0.25), deadline=10, at_step=3)
    loop.deliver(2, set_change(0.125), deadline=10)
    loop.nanos = 9
    loop.at_boundary()
    assert loop.rate == 0.125
    loop.nanos = 10
    loop.steps(3)
    assert loop.outcome(1).expired.cause == update_pb2.EXPIRY_CAUSE_DEADLINE
    assert loop.outcome(2).applied.step == 1


def test_past_its_last_step_it_expires(loop: PlainLoop) -> None:
    loop.steps(3)
    loop.deliver(1, set_change(0.25), at_step=2, max_step=3)
    loop.deliver(2, set_change(0.125), at_step=4, max_step=4)
    loop.at_boundary()
    loop.step()
    assert loop.outcome(1).expired.cause == update_pb2.EXPIRY_CAUSE_MAX_STEP
    assert loop.outcome(2).applied.step == 4


def test_a_duplicate_is_answered_with_the_same_outcome_and_applied_once(loop: PlainLoop) -> None:
    loop.deliver(1, multiply_change(0.5))
    loop.deliver(1, multiply_change(0.5))
    loop.at_boundary()
    loop.deliver(1, multiply_change(0.5))  # in force, not confirmed
    loop.step()
    loop.deliver(1, multiply_change(0.5))
    loop.step()
    assert len(loop.outcomes) == 2
    assert loop.outcomes[0] == loop.outcomes[1]
    assert loop.used[1] == START_RATE * 0.5


def test_a_withdrawn_update_is_not_applied_even_if_it_comes_again(loop: PlainLoop) -> None:
    loop.deliver(1, set_change(0.25), at_step=4)
    loop.at_boundary()
    loop.controller.withdraw(1)
    loop.controller.withdraw(2)
    loop.deliver(2, set_change(0.25))
    loop.steps(5)
    assert [(each.revision, each.WhichOneof("result")) for each in loop.outcomes] == [
        (1, "withdrawn"),
        (2, "withdrawn"),
        (2, "withdrawn"),
    ]
    assert 0.25 not in loop.used.values()


def test_a_withdrawal_that_comes_too_late_is_answered_with_what_happened(loop: PlainLoop) -> None:
    loop.deliver(1, set_change(0.25))
    loop.at_boundary()
    loop.controller.withdraw(1)
    loop.step()
    loop.controller.withdraw(1)
    loop.step()
    assert [each.WhichOneof("result") for each in loop.outcomes] == ["applied", "applied"]


def test_at_the_end_what_no_step_used_is_taken_back_and_expires(loop: PlainLoop) -> None:
    loop.deliver(1, set_change(0.4))
    loop.deliver(2, set_change(0.1), at_step=50)
    loop.steps(2)
    rate = loop.rate
    loop.deliver(3, set_change(0.25))
    loop.at_boundary()
    assert loop.rate == 0.25
    loop.finish()
    assert loop.rate == rate
    for revision in (2, 3):
        assert loop.outcome(revision).expired.cause == update_pb2.EXPIRY_CAUSE_JOB_ENDED
    assert loop.outcome(1).HasField("applied")
    assert [(each.first, each.last) for each in loop.controller.in_force()] == [(1, 1)]


def test_at_the_last_boundary_nothing_is_applied(loop: PlainLoop) -> None:
    loop.steps(2)
    loop.deliver(1, set_change(0.25))
    loop.step(last=True)
    assert loop.rate != 0.25
    loop.finish()
    assert loop.outcome(1).expired.cause == update_pb2.EXPIRY_CAUSE_JOB_ENDED


def test_a_value_that_something_else_overwrites_is_not_reported_as_applied(
    loop: PlainLoop,
) -> None:
    loop.deliver(1, set_change(0.25))
    loop.at_boundary()
    loop.optimizer.param_groups[0]["lr"] = 0.3
    loop.step()
    rejected = loop.outcome(1).rejected
    assert rejected.reason == "VERIFICATION_FAILED"
    assert "0.3" in rejected.message
    assert [each.value.number for each in rejected.in_force] == [loop.rate]
    assert not loop.controller.in_force()


def test_too_many_held_updates_are_rejected(loop: PlainLoop) -> None:
    for revision in range(1, MAX_HELD + 2):
        loop.deliver(revision, set_change(0.25), at_step=90)
    loop.at_boundary()
    (outcome,) = loop.outcomes
    assert outcome.revision == MAX_HELD + 1
    assert outcome.rejected.reason == "TOO_MANY_HELD"


def test_switched_off_everything_is_rejected_and_declared_unavailable(loop: PlainLoop) -> None:
    loop.deliver(1, set_change(0.25), at_step=9)
    loop.at_boundary()
    loop.controller.switch_off("STEERING_SWITCHED_OFF", "because")
    loop.step()
    loop.deliver(2, set_change(0.25))
    loop.step()
    for revision in (1, 2):
        rejected = loop.outcome(revision).rejected
        assert rejected.reason == "STEERING_SWITCHED_OFF"
        assert [each.value.number for each in rejected.in_force] != []
    (spec,) = loop.controller.specs()
    assert spec.unavailable_reason == "because"
    assert not spec.operations


def test_what_can_not_be_undone_is_said_and_raised() -> None:
    brittle = Brittle(undo=RuntimeError("stuck"))
    loop = PlainLoop(extra={"brittle": brittle})
    loop.deliver(1, set_change(2.0, parameter="brittle"), set_change(-1.0))
    loop.deliver(2, set_change(0.25))
    with pytest.raises(UndoError, match="still in force"):
        loop.at_boundary()
    loop.controller.switch_off("STEERING_SWITCHED_OFF", "because")
    loop.at_boundary()
    assert loop.outcome(1).rejected.reason == "UNDO_FAILED"
    assert {each.parameter: each.value.number for each in loop.outcome(1).rejected.in_force} == {
        "brittle": 2.0,
        "learning_rate": START_RATE,
    }
    assert loop.outcome(2).rejected.reason == "STEERING_SWITCHED_OFF"


def test_a_verification_that_fails_by_itself_is_no_success() -> None:
    loop = PlainLoop(extra={"brittle": Brittle(verify=RuntimeError("no idea"))})
    loop.deliver(1, set_change(2.0, parameter="brittle"), set_change(0.25))
    loop.at_boundary()
    loop.step()
    rejected = loop.outcome(1).rejected
    assert rejected.reason == "VERIFICATION_FAILED"
    assert rejected.parameter == "brittle"
    assert "no idea" in rejected.message


def test_a_loop_that_says_nothing_of_its_steps_gets_no_confirmation(loop: PlainLoop) -> None:
    loop.deliver(1, set_change(0.25))
    loop.at_boundary()
    loop.global_step += 1
    loop.at_boundary()
    assert "did not say" in loop.outcome(1).rejected.message


def test_outcomes_are_kept_until_they_are_stored_elsewhere(loop: PlainLoop) -> None:
    for revision in (1, 2):
        loop.deliver(revision, multiply_change(0.5))
        loop.step()
    loop.step()
    assert [each.revision for each in loop.controller.unacknowledged()] == [1, 2]
    loop.controller.acknowledge([1, 7])
    assert [each.revision for each in loop.controller.unacknowledged()] == [2]


def test_readings_of_what_moved_are_told_once(loop: PlainLoop) -> None:
    loop.deliver(1, set_change(0.25))
    loop.at_boundary()
    assert not loop.controller.take_moved_readings()
    loop.step()
    (reading,) = loop.controller.take_moved_readings()
    assert (reading.parameter, reading.group, reading.value.number) == (
        "learning_rate",
        "0",
        loop.rate,
    )
    assert not loop.controller.take_moved_readings()


@pytest.mark.parametrize("confirmed", [False, True])
def test_the_state_goes_through_json_and_a_new_process_goes_on(confirmed: bool) -> None:
    loop = PlainLoop(falling)
    loop.steps(2)
    loop.deliver(1, set_change(-1.0))
    loop.deliver(2, ramp_change(0.1, 4))
    loop.deliver(3, set_change(0.2), at_step=60)
    loop.at_boundary()
    if confirmed:
        loop.step()
    state = json.loads(json.dumps(loop.controller.state_dict()))
    torch_state = loop.optimizer.state_dict(), loop.scheduler.state_dict()

    resumed = PlainLoop(falling)
    resumed.optimizer.load_state_dict(torch_state[0])
    resumed.scheduler.load_state_dict(torch_state[1])
    resumed.global_step = loop.global_step
    resumed.controller.load_state_dict(state)
    assert [(each.first, each.last) for each in resumed.controller.in_force()] == [(2, 2)]
    assert not resumed.held()
    resumed.deliver(2, ramp_change(0.1, 4))
    for each in (loop, resumed):
        each.steps(6)
    assert {step: loop.used[step] for step in resumed.used} == resumed.used
    told = loop.outcome(2)
    assert {each.revision: each for each in resumed.outcomes} == {2: told}
    assert [each.revision for each in resumed.controller.unacknowledged()] == [1, 2]


def test_a_state_that_does_not_fit_is_refused(loop: PlainLoop) -> None:
    good = loop.controller.state_dict()
    for bad, says in [
        ({}, "version None"),
        ({**good, "version": 99}, "version 99"),
        ({**good, "lineage": {}}, "lineage is damaged"),
        ({**good, "unverified": [{}]}, "saved update is damaged"),
        ({**good, "parameters": {"dropout": {"p": 1}}}, "no such parameter"),
    ]:
        with pytest.raises(ValueError, match=says):
            loop.new_controller().load_state_dict(bad)


def test_the_outcome_of_what_is_in_force_and_not_verified_is_still_to_come(
    loop: PlainLoop,
) -> None:
    loop.deliver(1, set_change(0.5))
    loop.deliver(2, set_change(0.4), at_step=9)
    loop.step()
    assert [(each.first, each.last) for each in loop.controller.in_force()] == [(1, 1)]
    assert loop.controller.unsettled() == [1, 2]
    loop.step()
    assert loop.controller.unsettled() == [2]
    assert loop.outcome(1).HasField("applied")


def test_what_rides_in_a_checkpoint_is_of_plain_types_alone() -> None:
    """A checkpoint of torch that is loaded with weights_only takes nothing else, enums neither."""
    saving = Actions({ActionKind.SAVE_CHECKPOINT: None})
    loop = PlainLoop(falling, actions=saving)
    planned = set_change(0.25)
    planned.schedule.shape = update_pb2.SCHEDULE_SHAPE_COSINE
    loop.deliver(1, planned)
    loop.at_boundary()
    loop.step()
    loop.deliver(2, set_change(0.1, update_pb2.SET_MODE_HOLD, 5), action=save_checkpoint())
    loop.deliver(3, action=save_checkpoint())
    loop.at_boundary()
    state = loop.controller.state_dict()
    assert len(state["unverified"]) == 2
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    assert torch.load(file, weights_only=True) == state
