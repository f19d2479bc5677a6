"""Sequences of updates that were once handled wrongly, as random ones have found them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.integration.scripted_sequence import (
    Script,
    go_through,
    run,
)
from tests.support.in_force_model import (
    Asked,
    Delivery,
    Ended,
)
from tests.support.in_force_values import (
    ACCUMULATION,
    BATCH,
    GLOBAL,
    RATE,
)
from trainer_agent.parameters import (
    Change,
    Coupling,
    GuardRails,
    Set,
)


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
