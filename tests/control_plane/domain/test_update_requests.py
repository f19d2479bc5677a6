"""What a caller may ask for: the spec by itself, request ids, compare-and-set."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from control_plane.domain.errors import Reason, Refusal
from control_plane.domain.parameter import MultiplyChange, RampChange, ReleaseChange, SetChange
from control_plane.domain.update import (
    MAX_CHANGES,
    MAX_CHECKPOINT,
    MAX_REASON,
    MAX_REQUEST_ID,
    Action,
    ActionKind,
    UpdateSpec,
    answer_again,
    check_request_id,
    check_revision,
    check_spec,
    fingerprint,
)
from tests.support.domain_values import NOW, SECOND, set_rate, update

MICROSECOND = timedelta(microseconds=1)


@pytest.mark.parametrize(
    ("spec", "reason", "field", "said"),
    [
        (UpdateSpec(), Reason.INVALID_ARGUMENT, "spec.changes", "needs a change or an action"),
        (
            UpdateSpec(changes=tuple(ReleaseChange(f"p{i}") for i in range(MAX_CHANGES + 1))),
            Reason.INVALID_ARGUMENT,
            "spec.changes",
            f"got {MAX_CHANGES + 1}, at most {MAX_CHANGES}",
        ),
        (
            set_rate(reason="x" * (MAX_REASON + 1)),
            Reason.INVALID_ARGUMENT,
            "spec.reason",
            "1001 characters",
        ),
        (set_rate(deadline=NOW), Reason.DEADLINE_IN_PAST, "spec.deadline", NOW.isoformat()),
        (set_rate(deadline=NOW - SECOND), Reason.DEADLINE_IN_PAST, "spec.deadline", "already"),
        (set_rate(at_step=0), Reason.INVALID_ARGUMENT, "spec.apply_at.step", "count from 1"),
        (
            set_rate(at_step=50, max_step=49),
            Reason.INVALID_ARGUMENT,
            "spec.apply_at.max_step",
            "got 49, at least apply_at.step (50)",
        ),
        *(
            (
                UpdateSpec(action=Action(ActionKind.ROLL_BACK, checkpoint)),
                Reason.INVALID_ARGUMENT,
                "spec.action.roll_back.checkpoint",
                "allowed: a path of at most 4096 printable characters",
            )
            for checkpoint in ("x" * (MAX_CHECKPOINT + 1), " runs", "runs/\n1", "\0")
        ),
        (set_rate(max_step=0), Reason.INVALID_ARGUMENT, "spec.apply_at.max_step", "got 0"),
        (set_rate(at_step=20), Reason.STEP_IN_PAST, "spec.apply_at.step", "is 21"),
        (set_rate(at_step=1), Reason.STEP_IN_PAST, "spec.apply_at.step", "20 steps"),
        (set_rate(max_step=20), Reason.STEP_IN_PAST, "spec.apply_at.max_step", "is 21"),
        (set_rate(at_step=5, max_step=20), Reason.STEP_IN_PAST, "spec.apply_at.max_step", "20"),
    ],
)
def test_a_spec_that_makes_no_sense_is_refused(
    spec: UpdateSpec, reason: Reason, field: str, said: str
) -> None:
    with pytest.raises(Refusal) as refused:
        check_spec(spec, now=NOW, steps_done=20)
    assert refused.value.reason is reason
    assert [v.field for v in refused.value.violations] == [field]
    assert said in refused.value.violations[0].description


@pytest.mark.parametrize(
    "spec",
    [
        set_rate(),
        UpdateSpec(action=Action(ActionKind.PAUSE)),
        set_rate(at_step=21),
        set_rate(max_step=21),
        set_rate(at_step=5, max_step=21),
        set_rate(deadline=NOW + MICROSECOND),
        set_rate(reason="x" * MAX_REASON),
        UpdateSpec(changes=tuple(ReleaseChange(f"p{i}") for i in range(MAX_CHANGES))),
    ],
)
def test_what_is_just_allowed_is_allowed(spec: UpdateSpec) -> None:
    check_spec(spec, now=NOW, steps_done=20)


def test_no_step_is_in_the_past_while_it_is_unknown_how_far_the_job_is() -> None:
    check_spec(set_rate(at_step=1), now=NOW, steps_done=None)


@given(st.integers(1, 60), st.none() | st.integers(1, 60), st.integers(0, 60))
@settings(max_examples=200)
def test_a_step_is_in_the_past_exactly_when_no_step_that_is_left_may_be_the_first(
    at: int, latest: int | None, done: int
) -> None:
    spec = set_rate(at_step=at, max_step=latest)
    last_allowed = at if latest is None else latest
    # Steps that could still be the first to use the values.
    possible = last_allowed >= at and last_allowed > done
    try:
        check_spec(spec, now=NOW, steps_done=done)
    except Refusal:
        assert not possible
    else:
        assert possible


@pytest.mark.parametrize("good", ["a", "x" * MAX_REQUEST_ID, "!~", "3f2c-77"])
def test_request_ids_are_printable_ascii(good: str) -> None:
    check_request_id(good)


@pytest.mark.parametrize("bad", ["", " ", "a b", "a\n", "ä", "x" * (MAX_REQUEST_ID + 1), "\x7f"])
def test_odd_request_ids_are_refused(bad: str) -> None:
    with pytest.raises(Refusal) as refused:
        check_request_id(bad)
    assert refused.value.violations[0].field == "request_id"


finite = st.floats(allow_nan=False, allow_infinity=False)
changes = st.one_of(
    st.builds(
        SetChange,
        st.sampled_from(["a", "b"]),
        finite | st.integers(-3, 3) | st.booleans(),
        st.sampled_from(["", "0"]),
        st.sampled_from(["set", "peak"]),
    ),
    st.builds(MultiplyChange, st.just("a"), finite),
    st.builds(RampChange, st.just("a"), finite, st.integers(1, 3)),
)
specs = st.builds(
    UpdateSpec,
    changes=st.lists(changes, max_size=2).map(tuple),
    action=st.none() | st.builds(Action, st.sampled_from(ActionKind)),
    at_step=st.none() | st.integers(1, 3),
    max_step=st.none() | st.integers(1, 3),
    deadline=st.none() | st.sampled_from([NOW, NOW + MICROSECOND]),
    reason=st.sampled_from(["", "r"]),
    force=st.booleans(),
)


def _key(spec: UpdateSpec) -> str:
    """Tells apart what `==` does not: 1, 1.0 and True; 0.0 and -0.0."""
    return repr(spec)


@given(specs, specs)
@settings(max_examples=200)
def test_a_request_id_answers_again_exactly_for_the_same_content(
    first: UpdateSpec, second: UpdateSpec
) -> None:
    accepted = replace(update(3), spec=first)
    assert answer_again(accepted, first) is accepted
    if _key(first) == _key(second):
        assert answer_again(accepted, second) is accepted
        return
    with pytest.raises(Refusal) as refused:
        answer_again(accepted, second)
    assert refused.value.reason is Reason.REQUEST_ID_REUSED
    assert refused.value.metadata == {"revision": "3"}


def test_a_whole_number_is_not_the_same_request_as_a_real_one() -> None:
    assert fingerprint(set_rate(1)) != fingerprint(set_rate(1.0))


@given(st.none() | st.integers(0, 5), st.integers(0, 5))
def test_compare_and_set(expected: int | None, current: int) -> None:
    if expected is None or expected == current:
        check_revision(expected, current)
        return
    with pytest.raises(Refusal) as refused:
        check_revision(expected, current)
    assert refused.value.reason is Reason.REVISION_MISMATCH
    assert refused.value.metadata == {"current_revision": str(current)}
