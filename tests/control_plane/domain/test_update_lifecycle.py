"""An update's life, whatever comes and in whatever order."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from control_plane.domain.errors import Reason, Refusal
from control_plane.domain.update import (
    OPEN_STATES,
    Applied,
    Cancelled,
    Expired,
    ExpiryCause,
    Outcome,
    Rejected,
    UpdateState,
    deliver,
    request_cancel,
    settle,
)
from tests.support.domain_values import NOW, SECOND, applied, update

CANCELLED = Cancelled("ops", "no")
others: st.SearchStrategy[Outcome] = st.sampled_from(
    [
        Rejected("NO_SCALE", "the value is 0 here"),
        Expired(ExpiryCause.DEADLINE, "too late"),
        Expired(ExpiryCause.JOB_ENDED, "over"),
        CANCELLED,
    ]
)
applications = st.builds(applied, st.integers(1, 3), instance_id=st.sampled_from(["a", "b"]))
outcomes: st.SearchStrategy[Outcome] = others | applications


def _state_of(outcome: Outcome) -> UpdateState:
    return {
        Applied: UpdateState.APPLIED,
        Rejected: UpdateState.REJECTED,
        Expired: UpdateState.EXPIRED,
        Cancelled: UpdateState.CANCELLED,
    }[type(outcome)]


class Lifecycle(RuleBasedStateMachine):
    """Every operation at any time; what is final is remembered and compared."""

    def __init__(self) -> None:
        super().__init__()
        self.update = update()
        self.now = NOW
        self.final: tuple[UpdateState, Outcome] | None = None
        self.applications: list[Applied] = []

    def _tick(self) -> None:
        self.now += SECOND

    @rule()
    def deliver(self) -> None:
        self._tick()
        before = self.update
        self.update = deliver(before, self.now)
        if before.state is UpdateState.PENDING:
            assert self.update == replace(
                before, state=UpdateState.DELIVERED, deliver_time=self.now
            )
        else:
            assert self.update == before
        assert deliver(self.update, self.now + SECOND) == self.update

    @rule(outcome=outcomes)
    def settle(self, outcome: Outcome) -> None:
        self._tick()
        was_open = self.update.is_open
        self.update = settle(self.update, outcome, self.now)
        if was_open:
            self.final = (_state_of(outcome), outcome)
            assert self.update.settle_time == self.now
        if isinstance(outcome, Applied) and not any(
            (a.instance_id, a.step) == (outcome.instance_id, outcome.step)
            for a in self.applications
        ):
            self.applications.append(outcome)
        again = settle(self.update, outcome, self.now + SECOND)
        assert again == self.update, "the same outcome again changed something"

    @rule(may_have=st.booleans())
    def cancel(self, may_have: bool) -> None:
        self._tick()
        before = self.update
        if not before.is_open:
            with pytest.raises(Refusal) as refused:
                request_cancel(before, CANCELLED, self.now, trainer_may_have_it=may_have)
            assert refused.value.reason is Reason.UPDATE_SETTLED
            assert refused.value.metadata == {"state": before.state.upper()}
            return
        self.update = request_cancel(before, CANCELLED, self.now, trainer_may_have_it=may_have)
        if may_have:
            assert self.update.state is before.state, "only the trainer can say"
            assert self.update.cancel_request == CANCELLED
        else:
            self.final = (UpdateState.CANCELLED, CANCELLED)

    @invariant()
    def final_states_never_change(self) -> None:
        if self.final is None:
            assert self.update.state in OPEN_STATES
            assert self.update.outcome is None
            assert self.update.settle_time is None
        else:
            assert (self.update.state, self.update.outcome) == self.final

    @invariant()
    def every_application_is_on_record_once(self) -> None:
        recorded = [a for a in (self.update.outcome, *self.update.reapplied) if a is not None]
        assert [a for a in recorded if isinstance(a, Applied)] == self.applications

    @invariant()
    def what_was_asked_never_changes(self) -> None:
        first = update()
        assert (self.update.spec, self.update.revision, self.update.create_time) == (
            first.spec,
            first.revision,
            first.create_time,
        )

    @invariant()
    def whatever_the_trainer_settled_was_delivered(self) -> None:
        if isinstance(self.update.outcome, Applied | Rejected):
            assert self.update.deliver_time is not None


TestLifecycle = Lifecycle.TestCase
TestLifecycle.settings = settings(max_examples=60, stateful_step_count=15, deadline=None)


@given(st.lists(outcomes, min_size=1, max_size=6))
@settings(max_examples=60, deadline=None)
def test_a_history_told_again_adds_nothing(results: list[Outcome]) -> None:
    """At least once on the wire: replaying a whole history ends in the same update."""
    once = update()
    for result in results:
        once = settle(once, result, NOW + SECOND)
    again = once
    for result in results * 2:
        again = settle(again, result, NOW + timedelta(hours=1))
    assert again == once


def test_a_cancelled_update_that_was_applied_all_the_same_says_so() -> None:
    cancelled = request_cancel(update(), CANCELLED, NOW, trainer_may_have_it=False)
    late = settle(cancelled, applied(step=9), NOW + SECOND)
    assert late.state is UpdateState.CANCELLED
    assert [a.step for a in late.reapplied] == [9]


def test_a_second_cancellation_keeps_the_first_ones_author() -> None:
    first = request_cancel(update(), Cancelled("ann"), NOW, trainer_may_have_it=True)
    second = request_cancel(first, Cancelled("bob"), NOW, trainer_may_have_it=True)
    assert second.cancel_request == Cancelled("ann")
