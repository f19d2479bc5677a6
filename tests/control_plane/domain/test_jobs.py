"""Job ids, labels, names; what is desired, what is in force, who may have an update."""

from __future__ import annotations

import string
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from control_plane.domain.errors import Reason, Refusal
from control_plane.domain.job import (
    MAX_LABELS,
    Desired,
    Effective,
    JobState,
    SessionInfo,
    check_accepts_updates,
    check_action,
    check_job_id,
    check_labels,
    is_label_key,
    is_label_value,
    trainer_may_have,
    with_desired,
    with_effective,
)
from control_plane.domain.names import job_name, parse_job, parse_update, update_name
from control_plane.domain.parameter import (
    Change,
    MultiplyChange,
    ParameterSpec,
    ReleaseChange,
    SetChange,
)
from control_plane.domain.update import ActionKind, Applied, Transition
from tests.support.domain_values import NOW, SECOND, applied, job, refused, update

LOWER = string.ascii_lowercase + string.digits
ids = st.text(alphabet=LOWER + "-_.", min_size=1, max_size=63).filter(
    lambda text: text[0] in LOWER and text[-1] in LOWER
)


@given(ids)
def test_ids_that_may_be(job_id: str) -> None:
    check_job_id(job_id)
    assert parse_job(job_name(job_id), "name") == job_id


@pytest.mark.parametrize(
    "bad",
    ["", "-a", "a-", ".", "A", "a/b", "a b", "ä", "a\n", "a" * 64, "_a", "..", "a\x00", "٣"],
)
def test_ids_that_may_not_be(bad: str) -> None:
    with pytest.raises(Refusal) as caught:
        check_job_id(bad)
    assert caught.value.violations[0].field == "job_id"
    assert "1 to 63" in caught.value.message


@given(ids, st.integers(0, 10**18 - 1))
def test_names_read_back(job_id: str, revision: int) -> None:
    assert parse_update(update_name(job_id, revision), "name") == (job_id, revision)


@pytest.mark.parametrize(
    "bad", ["", "j", "jobs", "jobs/", "jobs/a/", "jobs/a/updates", "Jobs/a", "/jobs/a", "jobs/A"]
)
def test_job_names_that_may_not_be(bad: str) -> None:
    with pytest.raises(Refusal) as caught:
        parse_job(bad, "the_field")
    assert caught.value.violations[0].field == "the_field"


@pytest.mark.parametrize(
    "bad",
    [
        *("", "jobs/a", "jobs/a/updates/", "jobs/a/updates/x", "jobs/a/updates/-1"),
        *("jobs/a/updates/1/", "jobs/a/updates/1\n", "jobs/a/updates/٣", "jobs/A/updates/1"),
        f"jobs/a/updates/{10**18}",
    ],
)
def test_update_names_that_may_not_be(bad: str) -> None:
    with pytest.raises(Refusal) as caught:
        parse_update(bad, "the_field")
    assert caught.value.violations[0].field == "the_field"


@given(st.text(max_size=80))
def test_no_text_does_anything_but_name_or_be_refused(text: str) -> None:
    for refusal in (
        refused(lambda: parse_job(text, "name")),
        refused(lambda: parse_update(text, "name")),
    ):
        assert refusal is None or refusal.reason is Reason.INVALID_ARGUMENT


@pytest.mark.parametrize(
    "key", ["a", "A-b_c.d", "midcourse.dev/owner", "a" * 63, "x.y/" + "a" * 63]
)
def test_label_keys_that_may_be(key: str) -> None:
    assert is_label_key(key)


@pytest.mark.parametrize(
    "key", ["", "/a", "a/", "a/b/c", "-a", "a-", "A.b/c", "a" * 64, "ä", "a\n", "a b", "a=b"]
)
def test_label_keys_that_may_not_be(key: str) -> None:
    assert not is_label_key(key)
    with pytest.raises(Refusal) as caught:
        check_labels({key: "v"})
    assert caught.value.violations[0].field.startswith("labels[")


@pytest.mark.parametrize("value", ["", "a", "A_b.c-D", "0" * 63])
def test_label_values_that_may_be(value: str) -> None:
    assert is_label_value(value)


@pytest.mark.parametrize("value", [" ", "-a", "a-", "0" * 64, "ä", "a\n", "a b"])
def test_label_values_that_may_not_be(value: str) -> None:
    assert not is_label_value(value)
    with pytest.raises(Refusal) as caught:
        check_labels({"k": value})
    assert caught.value.violations[0].field == "labels['k']"


def test_labels_are_few() -> None:
    check_labels({f"k{i}": "" for i in range(MAX_LABELS)})
    with pytest.raises(Refusal) as caught:
        check_labels({f"k{i}": "" for i in range(MAX_LABELS + 1)})
    assert f"got {MAX_LABELS + 1} labels" in caught.value.message


changes: st.SearchStrategy[Change] = st.one_of(
    st.builds(SetChange, st.sampled_from("ab"), st.just(1.0), st.sampled_from(["", "0", "1"])),
    st.builds(MultiplyChange, st.sampled_from("ab"), st.just(2.0), st.sampled_from(["", "0"])),
    st.builds(ReleaseChange, st.sampled_from("ab")),
)


@given(
    st.lists(
        st.lists(changes, min_size=1, max_size=3, unique_by=lambda c: (c.parameter, c.group)),
        max_size=6,
    )
)
def test_desired_is_the_newest_change_of_each_parameter_and_group(
    history: list[list[Change]],
) -> None:
    desired: tuple[Desired, ...] = ()
    newest: dict[tuple[str, str], Desired] = {}
    for revision, made in enumerate(history, 1):
        desired = with_desired(desired, update(revision, *made))
        for change in made:
            if change.group == "":
                newest = {key: d for key, d in newest.items() if key[0] != change.parameter}
            newest[change.parameter, change.group] = Desired(change, revision)
    assert {(d.change.parameter, d.change.group): d for d in desired} == newest
    assert len(desired) == len(newest)


def test_effective_is_what_was_read_back() -> None:
    first = with_effective(job(parameters=()), update(1), applied(step=5, value=1e-5))
    assert [(e.parameter, e.value, e.revision, e.step) for e in first] == [
        ("learning_rate", 1e-5, 1, 5)
    ]
    unknown = Applied(9, (Transition("learning_rate", "", 1e-5, None), Transition("b", "1", 0, 1)))
    second = with_effective(job(parameters=(), effective=first), update(2), unknown)
    assert [(e.parameter, e.group, e.value, e.revision) for e in second] == [
        ("b", "1", 1, 2),
        ("learning_rate", "", None, 2),
    ]
    assert job(effective=second).in_force() == {("b", "1"): 1}


def test_a_value_for_the_whole_and_values_for_its_groups_do_not_stand_side_by_side() -> None:
    rate = "learning_rate"
    declared = job(
        parameters=(ParameterSpec(rate, groups=("0", "1")),), effective=(Effective(rate, "", 1.0),)
    )

    def told(*groups: str) -> Applied:
        return Applied(9, tuple(Transition(rate, group, 1.0, 2.0) for group in groups))

    one = with_effective(declared, update(1), told("1"))
    assert [(e.group, e.value) for e in one] == [("", 1.0), ("1", 2.0)]
    every = with_effective(declared, update(1), told("0", "1"))
    assert [(e.group, e.value) for e in every] == [("0", 2.0), ("1", 2.0)]
    whole = with_effective(replace(declared, effective=every), update(2), told(""))
    assert [(e.group, e.value) for e in whole] == [("", 2.0)]


@pytest.mark.parametrize("state", sorted(set(JobState) - {JobState.FINISHED}))
def test_a_job_that_may_come_back_takes_updates(state: JobState) -> None:
    check_accepts_updates(job(state=state))


def test_who_takes_no_updates() -> None:
    for other, reason in [
        (job(state=JobState.FINISHED), Reason.JOB_FINISHED),
        (job(parameters=()), Reason.JOB_NOT_STARTED),
    ]:
        with pytest.raises(Refusal) as caught:
            check_accepts_updates(other)
        assert caught.value.reason is reason
        assert caught.value.metadata == {"state": other.state.upper()}


def test_an_action_that_is_not_offered_is_refused() -> None:
    offering = job(actions=(ActionKind.PAUSE, ActionKind.STOP))
    check_action(offering, ActionKind.PAUSE)
    with pytest.raises(Refusal) as caught:
        check_action(offering, ActionKind.EVALUATE)
    assert caught.value.reason is Reason.OPERATION_UNSUPPORTED
    assert "got evaluate, actions that this job offers: pause, stop" in caught.value.message


SESSION = SessionInfo(1, "i", "a", "host", 1, "0", NOW, NOW + 10 * SECOND)


@pytest.mark.parametrize(
    ("state", "connected", "revision", "may_have"),
    [
        (JobState.RUNNING, True, 1, True),
        (JobState.RUNNING, True, 60, True),
        (JobState.RUNNING, False, 9, True),
        (JobState.RUNNING, False, 10, True),
        (JobState.RUNNING, False, 11, False),
        (JobState.LOST, False, 9, True),
        (JobState.LOST, False, 11, False),
        (JobState.FAILED, False, 1, False),
        (JobState.FINISHED, True, 1, False),
    ],
)
def test_who_may_have_an_update(
    state: JobState, connected: bool, revision: int, may_have: bool
) -> None:
    one = job(state=state, session=replace(SESSION, connected=connected, last_revision=10))
    assert trainer_may_have(one, update(revision)) is may_have


def test_nobody_has_an_update_of_a_job_that_never_had_a_session() -> None:
    assert not trainer_may_have(job(), update())


def test_the_etag_changes_with_the_job() -> None:
    first = job()
    second = first.changed(NOW + SECOND)
    assert first.etag != second.etag
    assert second.update_time == NOW + SECOND
    assert job(uid="another-uid").etag != job(uid="uid").etag
