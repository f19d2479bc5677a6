"""What a roll back takes away, in whatever course a run takes."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from control_plane.domain.roll_back import FAILED, after_return, is_roll_back, went_back
from control_plane.domain.session import FullState, TrainerOutcome
from control_plane.domain.update import (
    Action,
    ActionKind,
    Cancelled,
    Rejected,
    Update,
    redelivered,
    settle,
)
from tests.support.domain_values import NOW, SECOND, applied, set_rate, update

picks = st.integers(0, 100)
BACK = Action(ActionKind.ROLL_BACK)


class Course(RuleBasedStateMachine):
    """A run with its updates as the control plane has them, beside the list that it really is.

    `course` is what the present weights went through, in order; a checkpoint is how much of it
    there was. Going back cuts it off: after a crash what was cut off is put back at its end, after
    a roll back it is gone, but for what was sent later than the roll back itself.
    """

    def __init__(self) -> None:
        super().__init__()
        self.updates: dict[int, Update] = {}
        self.process = 1
        self.step = 1
        self.in_force: set[int] = set()
        self.saved: list[tuple[int, set[int]]] = [(0, set())]
        self.course: list[int] = []
        self.lengths: list[int] = [0]
        self.gone: dict[int, int] = {}

    def _accept(self, *, roll_back: bool = False) -> int:
        revision = len(self.updates) + 1
        spec = set_rate()
        spec = replace(spec, action=BACK) if roll_back else spec
        self.updates[revision] = replace(update(revision), spec=spec)
        return revision

    def _apply(self, revision: int) -> None:
        outcome = applied(self.step + 1, instance_id=f"process {self.process}")
        self.updates[revision] = settle(self.updates[revision], outcome, NOW)
        self.in_force.add(revision)
        self.course.append(revision)

    def _begin(self, pick: int, roll_back: int | None) -> list[int]:
        """Goes on from a checkpoint; returns what is sent to the process that does."""
        index = pick % len(self.saved)
        # Newer checkpoints are moved aside after a roll back, and written over after a crash.
        del self.saved[index + 1 :], self.lengths[index + 1 :]
        self.step, in_force = self.saved[index]
        self.in_force = set(in_force)
        self.process += 1
        if roll_back is not None:
            self.in_force.add(roll_back)
        for revision, each in self.updates.items():
            stands = revision in self.in_force
            self.updates[revision] = after_return(each, stands=stands, roll_back=roll_back)
        return [
            revision
            for revision, each in self.updates.items()
            if each.outcome and revision not in self.in_force and redelivered(each)
        ]

    @rule()
    def train(self) -> None:
        self.step += 1

    @rule()
    def accept_for_later(self) -> None:
        self._accept()

    @rule()
    def accept_a_roll_back_for_later(self) -> None:
        self._accept(roll_back=True)

    @rule()
    def change(self) -> None:
        self._apply(self._accept())

    def _held(self, *, roll_backs: bool) -> list[int]:
        return [
            revision
            for revision, each in self.updates.items()
            if each.is_open and is_roll_back(each.spec) is roll_backs
        ]

    @precondition(lambda self: self._held(roll_backs=False))
    @rule(pick=picks)
    def change_what_was_held(self, pick: int) -> None:
        held = self._held(roll_backs=False)
        self._apply(held[pick % len(held)])

    @rule()
    def save(self) -> None:
        self.saved.append((self.step, set(self.in_force)))
        self.lengths.append(len(self.course))
        self.step += 1

    @rule(pick=picks)
    def crash(self, pick: int) -> None:
        missing = self._begin(pick, None)
        kept = self.lengths[-1]
        assert missing == sorted(self.course[kept:])
        del self.course[kept:]
        for revision in missing:
            self._apply(revision)

    @rule(pick=picks, held=st.booleans())
    def roll_back(self, pick: int, held: bool) -> None:
        waiting = self._held(roll_backs=True) if held else []
        revision = waiting[0] if waiting else self._accept(roll_back=True)
        missing = self._begin(pick, revision)
        kept = self.lengths[-1]
        cut_off = self.course[kept:]
        del self.course[kept:]
        assert missing == sorted(each for each in cut_off if each > revision)
        self.gone |= {each: revision for each in cut_off if each < revision}
        for each in (revision, *missing):
            self._apply(each)

    @invariant()
    def what_was_rolled_back_says_so(self) -> None:
        assert {
            revision: each.rolled_back_by
            for revision, each in self.updates.items()
            if each.rolled_back_by is not None
        } == self.gone

    @invariant()
    def what_is_wanted_is_in_force_or_to_come(self) -> None:
        is_open = {revision for revision, each in self.updates.items() if each.is_open}
        wanted = {revision for revision, each in self.updates.items() if each.is_wanted}
        assert wanted == set(self.course) | is_open
        assert set(self.course) == self.in_force


TestCourse = Course.TestCase
TestCourse.settings = settings(max_examples=100, stateful_step_count=25, deadline=None)


def rejected(step: int = 40, reason: str = "NO_SCALE", revision: int = 2) -> FullState:
    outcome = TrainerOutcome(revision, Rejected(reason, "it can not be", step=step))
    return FullState(outcomes=(outcome,))


@pytest.mark.parametrize(
    ("state", "began_at", "expected"),
    [
        (FullState(in_force=((1, 2),)), None, True),
        (FullState(in_force=((1, 1),)), 40, False),
        # It holds it as it begins; later it may have been sent to it.
        (FullState(held=frozenset({2})), 40, True),
        (FullState(held=frozenset({2})), None, False),
        (FullState(held=frozenset({3})), 40, False),
        # Back there, its changes could not be made.
        (rejected(), 40, True),
        (rejected(), None, False),
        (rejected(step=39), 40, False),
        (rejected(revision=1), 40, False),
        (rejected(reason=FAILED), 40, False),
        (FullState(), 0, False),
    ],
)
def test_which_process_has_gone_back(
    state: FullState, began_at: int | None, expected: bool
) -> None:
    asked = replace(update(2), spec=replace(set_rate(), action=BACK))
    assert went_back(asked, state, began_at) is expected
    assert not went_back(update(2), state, began_at)


def test_it_is_the_newest_application_that_is_taken_away() -> None:
    first = settle(update(1), applied(50), NOW)
    gone = after_return(first, stands=False, roll_back=2)
    assert (gone.state, gone.rolled_back_by, gone.is_wanted) == (first.state, 2, False)
    assert not redelivered(gone)
    # Told once more, nothing changes; and the first roll back is the one that did it.
    assert settle(gone, applied(50), NOW + SECOND) == gone
    assert after_return(gone, stands=False, roll_back=3) == gone
    # A checkpoint that has it, from the part of the run that was left: it is in force again.
    assert after_return(gone, stands=True, roll_back=3) == first
    # So it is where a process has applied it all the same; and that goes the same way.
    again = settle(gone, applied(42, instance_id="two"), NOW)
    assert (again.rolled_back_by, redelivered(again)) == (None, True)
    gone_again = after_return(again, stands=False, roll_back=4)
    assert [each.rolled_back_by for each in (gone_again.outcome, *gone_again.reapplied)] == [2, 4]  # type: ignore[union-attr]  # applied


def test_what_a_roll_back_leaves_alone() -> None:
    first = settle(update(3), applied(50), NOW)
    open_one = update(1)
    cancelled = settle(update(1), Cancelled("ops"), NOW)
    assert after_return(first, stands=True, roll_back=4) == first
    assert after_return(first, stands=False, roll_back=None) == first
    assert after_return(first, stands=False, roll_back=3) == first  # the roll back itself
    assert after_return(first, stands=False, roll_back=2) == first  # sent after it
    assert after_return(open_one, stands=False, roll_back=4) == open_one
    assert after_return(cancelled, stands=False, roll_back=4) == cancelled
