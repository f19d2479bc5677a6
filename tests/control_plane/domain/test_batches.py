"""Batches: whom they are for, what they would change, what becomes of them."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from control_plane.domain.batch import (
    MAX_JOBS,
    NAMED_IN_ERRORS,
    Batch,
    check_same,
    check_targets,
    digest_of,
    expected_transitions,
    item_of,
    not_admitted,
)
from control_plane.domain.errors import Reason, Refusal, invalid
from control_plane.domain.parameter import (
    Change,
    Coupling,
    Kind,
    MultiplyChange,
    ParameterSpec,
    RampChange,
    ReleaseChange,
    ScheduleChange,
    SetChange,
    Shape,
    Value,
)
from control_plane.domain.update import (
    Applied,
    Cancelled,
    Expired,
    ExpiryCause,
    Rejected,
    Transition,
    UpdateSpec,
    UpdateState,
    settle,
)
from tests.support.domain_values import NOW, SECOND, applied, job, refused, set_rate, update

RATE = ("learning_rate", "")
STEPS = ("gradient_accumulation_steps", "")


@pytest.mark.parametrize(
    ("selector", "jobs", "field"),
    [
        ("", (), "selector"),
        (" ", (), "selector"),
        ("a=b", ("j",), "selector"),
        ("", ("a", "b", "a"), "jobs[2]"),
        ("", tuple(map(str, range(MAX_JOBS + 1))), "jobs"),
    ],
)
def test_whom_a_batch_can_not_be_for(selector: str, jobs: tuple[str, ...], field: str) -> None:
    refusal = refused(lambda: check_targets(selector, jobs))
    assert refusal is not None
    assert [violation.field for violation in refusal.violations] == [field]


def test_whom_a_batch_can_be_for() -> None:
    check_targets("a=b", ())
    check_targets("", tuple(map(str, range(MAX_JOBS))))


@given(st.lists(st.sampled_from("abcd"), unique=True), st.booleans(), st.sampled_from(["", "a=b"]))
def test_what_makes_a_request_the_same(jobs: list[str], best_effort: bool, selector: str) -> None:
    digest = digest_of(set_rate(), selector, jobs, best_effort=best_effort)
    assert digest == digest_of(set_rate(), selector, jobs[::-1], best_effort=best_effort)
    others = [
        digest_of(set_rate(2e-5), selector, jobs, best_effort=best_effort),
        digest_of(set_rate(), f"{selector}c", jobs, best_effort=best_effort),
        digest_of(set_rate(), selector, [*jobs, "e"], best_effort=best_effort),
        digest_of(set_rate(), selector, jobs, best_effort=not best_effort),
    ]
    assert digest not in others
    known = Batch(set_rate(), selector, best_effort, "ops", "r", digest, NOW, key=7)
    check_same(known, digest)
    for other in others:
        refusal = refused(lambda other=other: check_same(known, other))  # type: ignore[misc]
        assert refusal is not None
        assert refusal.reason is Reason.REQUEST_ID_REUSED
        assert "batches/7" in refusal.message


@given(
    st.dictionaries(
        st.text("abc", min_size=1, max_size=4),
        st.sampled_from([Reason.GUARD_RAIL, Reason.JOB_FINISHED]),
        min_size=1,
        max_size=30,
    ),
    st.booleans(),
)
def test_what_an_error_says_of_many_jobs(reasons: dict[str, Reason], more: bool) -> None:
    refusals = {each: Refusal(reason, f"why {each}") for each, reason in reasons.items()}
    total = len(refusals) + more
    error = not_admitted(refusals, total, best_effort=False)
    same = len(set(reasons.values())) == 1
    assert error.reason is (next(iter(reasons.values())) if same else Reason.BATCH_REFUSED)
    assert f"{len(refusals)} of {total} jobs" in error.message
    assert ("best_effort" in error.message) is more
    named = error.violations[:NAMED_IN_ERRORS]
    assert [v.field for v in named] == [f"jobs/{each}" for each in sorted(refusals)][: len(named)]
    assert all(v.description == f"why {v.field.removeprefix('jobs/')}" for v in named)
    rest = len(refusals) - len(named)
    assert [v.description for v in error.violations[NAMED_IN_ERRORS:]] == (
        [f"and {rest} more"] if rest else []
    )


def test_it_can_be_tried_again_where_all_that_is_wrong_passes() -> None:
    full = Refusal(Reason.TOO_MANY_PENDING, "full", retry_delay=1.0)
    assert not_admitted({"a": full}, 1, best_effort=True).retry_delay == 1.0
    assert not_admitted({"a": invalid("f", "bad")}, 1, best_effort=True).retry_delay is None


@pytest.mark.parametrize(
    ("change", "in_force", "expected"),
    [
        (SetChange(RATE[0], 1e-5), {RATE: 2e-5}, (2e-5, 1e-5)),
        (SetChange(RATE[0], 1e-5), {}, (None, 1e-5)),
        (SetChange(RATE[0], 1e-5, mode="hold", hold_steps=3), {RATE: 2e-5}, (2e-5, 1e-5)),
        (SetChange(RATE[0], 1e-5, mode="peak"), {RATE: 2e-5}, (2e-5, None)),
        (MultiplyChange(RATE[0], 0.5), {RATE: 2e-5}, (2e-5, 1e-5)),
        (MultiplyChange(RATE[0], 0.5), {}, (None, None)),
        (MultiplyChange(STEPS[0], 1.5), {STEPS: 4}, (4, None)),
        (RampChange(RATE[0], 1e-5, 10), {RATE: 2e-5}, (2e-5, None)),
        (ScheduleChange(RATE[0], Shape.COSINE, 1e-5), {RATE: 2e-5}, (2e-5, None)),
        (ReleaseChange(RATE[0]), {RATE: 2e-5}, (2e-5, None)),
        (SetChange("unheard_of", True), {}, (None, True)),
    ],
)
def test_what_an_update_would_change(
    change: Change, in_force: dict[tuple[str, str], Value], expected: tuple[Any, Any]
) -> None:
    spec = UpdateSpec(changes=(change,))
    of = Transition(change.parameter, change.group, *expected)
    assert expected_transitions(spec, job(), in_force) == (of,)


@given(st.floats(1e-8, 1e-2), st.floats(0.1, 10))
def test_each_job_has_its_own_product(value: float, factor: float) -> None:
    spec = UpdateSpec(changes=(MultiplyChange("learning_rate", factor, "1"),))
    [made] = expected_transitions(spec, job(), {("learning_rate", "1"): value, RATE: 1.0})
    assert (made.group, made.old, made.new) == ("1", value, value * factor)


@pytest.mark.parametrize(
    ("coupling", "rate"), [(Coupling.LINEAR, 4e-5), (Coupling.SQRT, 2e-5 * 2**0.5)]
)
def test_what_follows_is_told_too(coupling: Coupling, rate: float) -> None:
    size = ParameterSpec(STEPS[0], kind=Kind.INTEGER, current_value=4)
    spec = UpdateSpec(changes=(SetChange(STEPS[0], 8, coupling=coupling),))
    of = job(parameters=(*job().parameters[:1], size))
    known = expected_transitions(spec, of, {RATE: 2e-5, STEPS: 4})
    assert known == (Transition(*STEPS, 4, 8), Transition(*RATE, 2e-5, rate))
    unknown = expected_transitions(spec, of, {RATE: 2e-5})
    assert unknown[1] == Transition(*RATE, 2e-5, None), "no size in force, no factor"


BATCH = ("global_batch_size", "")
SIZE = ("per_device_train_batch_size", "")
IN_FORCE: dict[tuple[str, str], Value] = {RATE: 2e-5, STEPS: 8, BATCH: 64, SIZE: 2}
FIRST = ("learning_rate", "0")


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (
            [SetChange(RATE[0], 1e-4), SetChange(BATCH[0], 128, coupling=Coupling.LINEAR)],
            {RATE: (2e-5, 2e-4), BATCH: (64, 128)},
        ),
        (
            [SetChange(BATCH[0], 128, coupling=Coupling.LINEAR), MultiplyChange(RATE[0], 2)],
            {BATCH: (64, 128), RATE: (2e-5, 8e-5)},
        ),
        (
            [SetChange(name, 4, coupling=Coupling.LINEAR) for name in (STEPS[0], SIZE[0])],
            {STEPS: (8, 4), RATE: (2e-5, 2e-5), SIZE: (2, 4)},
        ),
        # Another batch size was moved by the first, and by how much is not known here.
        (
            [SetChange(STEPS[0], 4), SetChange(BATCH[0], 128, coupling=Coupling.LINEAR)],
            {STEPS: (8, 4), BATCH: (64, 128), RATE: (2e-5, None)},
        ),
        (
            [SetChange(RATE[0], 1e-4, mode="peak"), MultiplyChange(RATE[0], 2, "0")],
            {RATE: (2e-5, None), FIRST: (2e-5, None)},
        ),
        # The first group's is what is shown for all.
        (
            [SetChange(RATE[0], 1e-4, "0"), MultiplyChange(RATE[0], 2)],
            {FIRST: (2e-5, 1e-4), RATE: (2e-5, None)},
        ),
        (
            [MultiplyChange(RATE[0], 2, "0"), MultiplyChange(RATE[0], 2, "1")],
            {FIRST: (2e-5, 4e-5), (RATE[0], "1"): (1e-5, 2e-5)},
        ),
    ],
)
def test_each_change_sees_what_those_before_it_did(
    changes: list[Change], expected: dict[tuple[str, str], tuple[Any, Any]]
) -> None:
    in_force = {**IN_FORCE, FIRST: 2e-5, (RATE[0], "1"): 1e-5}
    found = expected_transitions(UpdateSpec(changes=tuple(changes)), job(), in_force)
    assert found == tuple(Transition(*key, *values) for key, values in expected.items())


def test_what_has_become_of_it_at_a_job() -> None:
    would = (Transition("learning_rate", "", 2e-5, 1e-5),)
    waiting = item_of(update(3), would)
    assert (waiting.revision, waiting.state, waiting.is_open) == (3, UpdateState.PENDING, True)
    assert (waiting.transitions, waiting.step, waiting.refusal) == (would, None, None)

    def ended(outcome: Any) -> Any:
        return item_of(settle(update(3), outcome, NOW + SECOND), would)

    done = ended(applied(7, old=3e-5))
    assert (done.state, done.step, done.is_open) == (UpdateState.APPLIED, 7, False)
    assert done.transitions == applied(7, old=3e-5).transitions, "as read back, not as expected"
    assert ended(Applied(0)).step is None, "0 stands for a step that nobody knows"
    rejected = ended(Rejected("NOT_NOW", "no")).refusal
    assert (rejected.reason, rejected.message) == ("NOT_NOW", "no")
    expired = ended(Expired(ExpiryCause.MAX_STEP, "too late"))
    assert (expired.refusal.reason, expired.transitions) == ("MAX_STEP", ())
    assert ended(Cancelled("ops")).refusal is None
