from __future__ import annotations

import itertools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from midcourse.agent.v1 import session_pb2
from midcourse.control.v1 import update_pb2
from trainer_agent.steering.lineage import MAX_OUTCOMES, Lineage, RevisionSet


def applied(revision: int) -> session_pb2.UpdateOutcome:
    return session_pb2.UpdateOutcome(revision=revision, applied=update_pb2.Applied(step=revision))


def rejected(revision: int) -> session_pb2.UpdateOutcome:
    return session_pb2.UpdateOutcome(revision=revision, rejected=update_pb2.Rejected(reason="NO"))


@given(
    st.lists(st.tuples(st.booleans(), st.integers(1, 30)), max_size=60),
    st.integers(0, 31),
)
def test_a_revision_set_is_a_set_in_ranges(operations: list[tuple[bool, int]], asked: int) -> None:
    ours, plain = RevisionSet(), set[int]()
    for add, revision in operations:
        if add:
            ours.add(revision)
            plain.add(revision)
        else:
            ours.discard(revision)
            plain.discard(revision)
    assert (asked in ours) == (asked in plain)
    ranges = list(ours)
    assert {each for first, last in ranges for each in range(first, last + 1)} == plain
    # Neither empty, nor touching, nor out of order: there is one way to write each set.
    assert all(first <= last for first, last in ranges)
    assert all(last + 1 < first for (_, last), (first, _) in itertools.pairwise(ranges))
    assert list(RevisionSet(ranges)) == ranges


@pytest.mark.parametrize("ranges", [[(3, 2)], [(1, 3), (3, 4)], [(5, 6), (1, 2)]])
def test_ranges_must_ascend(ranges: list[tuple[int, int]]) -> None:
    with pytest.raises(ValueError, match="must ascend"):
        RevisionSet(ranges)


@given(st.lists(st.tuples(st.integers(1, 30), st.integers(1, 30)), max_size=12))
def test_a_set_of_ranges_in_any_order_covers_them_and_no_more(
    ranges: list[tuple[int, int]],
) -> None:
    covered = {each for first, last in ranges for each in range(first, last + 1)}
    plain = RevisionSet()
    for each in covered:
        plain.add(each)
    assert list(RevisionSet.covering(ranges)) == list(plain)


def test_it_goes_through_json() -> None:
    lineage = Lineage()
    for outcome in (applied(1), rejected(2), applied(3)):
        lineage.settle(outcome)
    lineage.acknowledge([1])
    again = Lineage.from_state_dict(json.loads(json.dumps(lineage.state_dict())))
    assert list(again.in_force) == [(1, 1), (3, 3)]
    assert again.outcome(2) == rejected(2)
    assert again.unacknowledged() == [rejected(2), applied(3)]
    assert again.knows(1)
    assert not again.knows(4)


@pytest.mark.parametrize(
    "damage", [{"outcomes": ["?"]}, {"outcomes": ["////"]}, {"in_force": [[2, 1]]}, {"in_force": 7}]
)
def test_what_is_damaged_is_refused(damage: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="damaged"):
        Lineage.from_state_dict({**Lineage().state_dict(), **damage})


def test_it_is_bounded_and_forgets_first_what_was_stored_elsewhere() -> None:
    lineage = Lineage()
    lineage.settle(applied(1))
    lineage.settle(applied(2))
    lineage.acknowledge([2])
    for revision in range(3, MAX_OUTCOMES + 2):
        lineage.settle(applied(revision))
    assert lineage.outcome(1) == applied(1)
    assert lineage.outcome(2) is None
    assert lineage.knows(2)
    lineage.settle(applied(MAX_OUTCOMES + 2))
    assert lineage.outcome(1) is None
    assert len(lineage.unacknowledged()) == MAX_OUTCOMES
    assert list(lineage.in_force) == [(1, MAX_OUTCOMES + 2)]


def test_the_newest_is_the_highest_of_all_that_is_known() -> None:
    lineage = Lineage()
    assert lineage.newest == 0
    lineage.settle(applied(4))
    lineage.settle(rejected(6))
    lineage.settle(applied(5))
    assert lineage.newest == 6
    assert Lineage.from_state_dict(lineage.state_dict()).newest == 6
    lineage.in_force.add(9)
    assert lineage.newest == 9
