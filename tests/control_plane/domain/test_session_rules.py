"""Who is served, which messages count, what state a job is in."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from control_plane.domain.errors import Reason, Refusal
from control_plane.domain.job import LIVE_STATES, JobState, SessionInfo
from control_plane.domain.session import (
    PROTOCOL_VERSION,
    MessageNumbers,
    Phase,
    Run,
    begins_anew,
    check_instance,
    check_protocol,
    contains,
    state_after,
)
from tests.support.domain_values import NOW, hello, job

SESSION = SessionInfo(4, "old", "a", "gpu-07", 77, "0", NOW, NOW)


@given(st.integers(0, 5), st.lists(st.integers(0, 30), max_size=20))
def test_messages_are_numbered_upwards(first: int, numbers: list[int]) -> None:
    checked = MessageNumbers(first)
    last = first
    for number in numbers:
        if number <= last:
            with pytest.raises(Refusal) as refused:
                checked.accept(number)
            assert refused.value.reason is Reason.SEQUENCE_REGRESSED
            assert refused.value.metadata == {"expected": str(last + 1), "got": str(number)}
        else:
            assert checked.accept(number) is (number > last + 1)
            last = number
        assert checked.last == last


@pytest.mark.parametrize("version", [0, 2, 2**32 - 1])
def test_another_protocol_is_refused(version: int) -> None:
    check_protocol(PROTOCOL_VERSION)
    with pytest.raises(Refusal) as refused:
        check_protocol(version)
    assert refused.value.reason is Reason.PROTOCOL_VERSION_UNSUPPORTED
    assert refused.value.metadata == {"supported": "1", "got": str(version)}


@pytest.mark.parametrize("is_open", [True, False])
def test_an_instance_whose_place_was_taken_is_refused(is_open: bool) -> None:
    runs = [Run(1, "old", 0, superseded=True), Run(2, "new", 0)]
    served = job(session=SESSION)
    check_instance(hello(instance_id="new"), runs, served, is_open=is_open)
    check_instance(hello(instance_id="newer"), runs, served, is_open=is_open)
    with pytest.raises(Refusal) as refused:
        check_instance(hello(instance_id="old"), runs, served, is_open=is_open)
    assert refused.value.reason is Reason.INSTANCE_SUPERSEDED
    assert "process 77 on gpu-07" in refused.value.message


def test_one_that_ended_before_it_was_heard_of_takes_nobodys_place() -> None:
    runs = [Run(1, "new", 0)]
    gone = hello(instance_id="old", phase=Phase.EXITED)
    check_instance(gone, [], job(session=None), is_open=False)
    for state in (JobState.LOST, JobState.FAILED, JobState.FINISHED):
        check_instance(gone, runs, job(session=SESSION, state=state), is_open=True)
    served = job(session=SESSION, state=JobState.RUNNING)
    check_instance(replace(gone, instance_id="new"), runs, served, is_open=True)
    with pytest.raises(Refusal) as refused:
        check_instance(gone, runs, served, is_open=True)
    assert refused.value.reason is Reason.INSTANCE_SUPERSEDED
    assert refused.value.retry_delay is None


@pytest.mark.parametrize("state", sorted(LIVE_STATES))
def test_while_the_other_one_has_no_stream_nobody_can_tell_which_is_newer(state: JobState) -> None:
    """It may be on its way back, or have died with its host, so that this one came after it."""
    runs = [Run(1, "new", 0)]
    gone = hello(instance_id="old", phase=Phase.EXITED)
    away = job(session=SESSION, state=state)
    check_instance(replace(gone, instance_id="new"), runs, away, is_open=False)
    with pytest.raises(Refusal) as refused:
        check_instance(gone, runs, away, is_open=False)
    assert refused.value.reason is Reason.INSTANCE_UNDECIDED
    assert refused.value.retry_delay
    assert "process 77 on gpu-07" in refused.value.message


@pytest.mark.parametrize(
    ("state", "instance", "start_step", "in_force", "anew"),
    [
        (JobState.FINISHED, "new", 0, (), True),
        (JobState.FINISHED, "old", 0, (), False),
        (JobState.FINISHED, "new", 100, (), False),
        (JobState.FINISHED, "new", 0, ((1, 2),), False),
        (JobState.FAILED, "new", 0, (), False),
        (JobState.LOST, "new", 0, (), False),
        (JobState.RUNNING, "new", 0, (), False),
    ],
)
def test_a_new_run_of_a_finished_job(
    state: JobState,
    instance: str,
    start_step: int,
    in_force: tuple[tuple[int, int], ...],
    anew: bool,
) -> None:
    comes = hello(instance_id=instance, start_step=start_step, in_force=in_force)
    assert begins_anew(job(state=state, session=SESSION), comes) is anew


def test_a_first_session_begins_nothing_anew() -> None:
    assert not begins_anew(job(state=JobState.FINISHED), hello())


@given(st.lists(st.tuples(st.integers(1, 20), st.integers(1, 20)), max_size=5), st.integers(0, 25))
def test_ranges_include_both_ends(pairs: list[tuple[int, int]], number: int) -> None:
    ranges = [(min(pair), max(pair)) for pair in pairs]
    members = {n for first, last in ranges for n in range(first, last + 1)}
    assert contains(ranges, number) == (number in members)


@pytest.mark.parametrize("phase", Phase)
@pytest.mark.parametrize("state", JobState)
def test_a_job_follows_its_trainer(state: JobState, phase: Phase) -> None:
    after = state_after(state, phase)
    if state is JobState.FINISHED and phase is Phase.EXITED:
        assert after is JobState.FINISHED, "a process ends after training does"
    else:
        assert (
            after
            == {
                Phase.UNKNOWN: "running",
                Phase.TRAINING: "running",
                Phase.STALLED: "stalled",
                Phase.PAUSED: "paused",
                Phase.FINISHED: "finished",
                Phase.EXITED: "failed",
            }[phase]
        )
