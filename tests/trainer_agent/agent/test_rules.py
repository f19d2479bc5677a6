"""Back-off, refusals, pace, exit status, admission, options: rules without I/O."""

from __future__ import annotations

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from grpc_runtime.errors import StatusError
from midcourse.agent.v1 import session_pb2
from midcourse.link.v1 import link_pb2
from trainer_agent.agent.admission import Served, refusal
from trainer_agent.agent.backoff import CAP_SECONDS, LONGEST_ADVICE_SECONDS, FullJitter
from trainer_agent.agent.exit_status import describe_exit
from trainer_agent.agent.options import parse_options
from trainer_agent.agent.pace import Pace
from trainer_agent.agent.refusals import Course, judge
from trainer_agent.agent.trainer_state import TrainerState

# ------------------------------------------------------------------------------------- back-off


def test_waits_double_up_to_the_cap() -> None:
    backoff = FullJitter(base=0.1, cap=10.0, uniform=lambda _low, high: high)
    assert [backoff.next_delay() for _ in range(9)] == [
        0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 10.0, 10.0,
    ]  # fmt: skip
    backoff.reset()
    assert backoff.next_delay() == 0.1


@given(attempts=st.integers(0, 2000), advised=st.none() | st.floats(0, 1000))
def test_a_wait_is_as_long_as_advised_within_bounds(attempts: int, advised: float | None) -> None:
    backoff = FullJitter()
    for _ in range(attempts):
        backoff.next_delay()
    delay = backoff.next_delay(advised)
    heeded = min(advised or 0, LONGEST_ADVICE_SECONDS)
    assert heeded <= delay <= max(CAP_SECONDS, 1.5 * heeded)


def test_nobody_stays_away_for_as_long_as_a_mistaken_server_says() -> None:
    backoff = FullJitter()
    waits = {backoff.next_delay(1e9) for _ in range(20)}
    assert LONGEST_ADVICE_SECONDS <= min(waits) < max(waits) <= 1.5 * LONGEST_ADVICE_SECONDS


# -------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("code", "reason", "course"),
    [
        (grpc.StatusCode.FAILED_PRECONDITION, "INSTANCE_SUPERSEDED", Course.SUPERSEDED),
        (grpc.StatusCode.ABORTED, "SESSION_FENCED", Course.FENCED),
        (grpc.StatusCode.ABORTED, "INSTANCE_UNDECIDED", Course.RETRY),
        (grpc.StatusCode.INVALID_ARGUMENT, "PROTOCOL_VERSION_UNSUPPORTED", Course.RETRY_SLOWLY),
        (grpc.StatusCode.PERMISSION_DENIED, "", Course.RETRY_SLOWLY),
        (grpc.StatusCode.UNAUTHENTICATED, "", Course.RETRY_SLOWLY),
        (grpc.StatusCode.UNIMPLEMENTED, "", Course.RETRY_SLOWLY),
        (grpc.StatusCode.UNAVAILABLE, "", Course.RETRY),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, "TOO_MANY", Course.RETRY),
        (grpc.StatusCode.INTERNAL, "", Course.RETRY),
        (grpc.StatusCode.UNKNOWN, "", Course.RETRY),
        (grpc.StatusCode.DEADLINE_EXCEEDED, "", Course.RETRY),
        (grpc.StatusCode.CANCELLED, "", Course.RETRY),
    ],
)
def test_what_to_do_about_an_error(code: grpc.StatusCode, reason: str, course: Course) -> None:
    judged = judge(StatusError(code, "why", reason=reason))
    assert judged.course is course
    assert (judged.reason, judged.message) == (reason or code.name, "why")


def test_an_error_with_a_retry_delay_is_worth_trying_again() -> None:
    error = StatusError(grpc.StatusCode.FAILED_PRECONDITION, "wait", reason="X", retry_delay=3.0)
    assert (judge(error).course, judge(error).retry_delay) == (Course.RETRY, 3.0)


# ------------------------------------------------------------------------------------------ pace


def test_a_rate_needs_two_steps() -> None:
    pace = Pace(0.0)
    assert pace.steps_per_second(0.0) is None
    pace.step(10, 1.0)
    assert pace.steps_per_second(1.0) is None
    pace.step(20, 2.0)
    assert pace.steps_per_second(2.0) == pytest.approx(10.0)


def test_the_rate_falls_while_no_step_comes_and_is_unknown_when_stalled() -> None:
    pace = Pace(0.0, stall_after=30.0)
    for step in range(5):
        pace.step(step, float(step))
    assert pace.steps_per_second(4.5) == pytest.approx(1.0)
    assert pace.steps_per_second(9.0) == pytest.approx(0.5)
    assert pace.steps_per_second(34.0) is None


def test_a_stall_is_the_longer_of_a_time_and_ten_median_steps() -> None:
    pace = Pace(100.0, stall_after=30.0)
    assert pace.stalls_at() == 130.0
    pace.step(1, 110.0)
    assert pace.stalls_at() == 140.0
    for step in range(2, 10):
        pace.step(step, 110.0 + 7 * step)
    assert pace.stalls_at() == pytest.approx(110.0 + 63 + 70)
    assert pace.idle(200.0) == pytest.approx(27.0)


def test_missing_reports_do_not_make_steps_look_slow() -> None:
    pace = Pace(0.0)
    pace.step(100, 0.0)
    pace.step(200, 100.0)
    assert pace.stalls_at() == 130.0


def test_going_back_to_a_checkpoint_begins_anew() -> None:
    pace = Pace(0.0)
    pace.step(100, 1.0)
    pace.step(101, 2.0)
    pace.step(50, 3.0)
    assert pace.steps_per_second(3.0) is None
    pace.step(51, 3.5)
    assert pace.steps_per_second(3.5) == pytest.approx(2.0)


def test_steps_done_before_the_trainer_was_heard_of_count_at_their_own_times() -> None:
    pace = Pace(100.0)  # its agent took a while to start; then all came at once
    for step in range(1, 8):
        pace.step(step, 99.0 + step / 7)
    assert pace.steps_per_second(100.01) == pytest.approx(7.0)
    assert pace.stalls_at() == 130.0


def test_steps_at_one_moment_tell_nothing_of_the_rate() -> None:
    pace = Pace(0.0)
    for step in range(1, 8):
        pace.step(step, 1.0)
    assert pace.steps_per_second(1.03) is None


@pytest.mark.parametrize("first", [101.0, 99.0], ids=["in time", "heard of too late"])
def test_how_long_the_first_step_after_a_pause_took_is_not_known(first: float) -> None:
    pace = Pace(0.0)
    pace.step(1, 1.0)
    pace.step(2, 2.0)
    pace.resume(100.0)
    assert pace.steps_per_second(100.5) == pytest.approx(1.0)
    assert pace.steps_per_second(104.0) == pytest.approx(1 / 4)
    pace.step(3, first)
    assert pace.steps_per_second(101.0) == pytest.approx(1.0 if first == 101.0 else 1 / 2)
    pace.step(4, first + 3)
    assert pace.steps_per_second(first + 3) == pytest.approx(2 / 4)


def test_a_pause_after_the_first_step_makes_up_no_rate() -> None:
    pace = Pace(0.0)
    pace.step(1, 1.0)
    pace.resume(100.0)
    pace.step(2, 100.0)
    assert pace.steps_per_second(100.005) is None
    pace.step(3, 100.5)
    assert pace.steps_per_second(100.5) == pytest.approx(2.0)


# ----------------------------------------------------------------------------------- exit status


@pytest.mark.parametrize(
    ("wait_status", "code", "signal", "words"),
    [
        (0, 0, None, "exited with code 0"),
        (3 << 8, 3, None, "exited with code 3"),
        (9, None, 9, "killed by SIGKILL: by a person, a scheduler, or the kernel"),
        (11 | 0x80, None, 11, "killed by SIGSEGV"),
        (None, None, None, "exit code is unknown"),
    ],
)
def test_an_exit_in_words_and_numbers(
    wait_status: int | None, code: int | None, signal: int | None, words: str
) -> None:
    described = describe_exit(wait_status)
    assert (described.exit_code if described.HasField("exit_code") else None) == code
    assert (described.signal if described.HasField("signal") else None) == signal
    assert words in described.message


# ------------------------------------------------------------------------------------- admission


def hello(**fields: object) -> link_pb2.TrainerHello:
    said = {"protocol_version": 1, "job_id": "job", "instance_id": "i", "control_plane": "h:1"}
    return link_pb2.TrainerHello(**(said | fields))  # type: ignore[arg-type]  # its fields


@pytest.mark.parametrize(
    ("said", "served", "reason"),
    [
        (hello(), Served.NOBODY_YET, None),
        (hello(), Served.ALIVE, None),
        (hello(instance_id="other"), Served.ALIVE, "JOB_HAS_ANOTHER_TRAINER"),
        (hello(instance_id="other"), Served.ENDING, None),
        (hello(protocol_version=2), Served.NOBODY_YET, "LINK_VERSION_UNSUPPORTED"),
        (hello(job_id="another"), Served.NOBODY_YET, "HELLO_INVALID"),
        (hello(instance_id=""), Served.NOBODY_YET, "HELLO_INVALID"),
        (hello(control_plane=""), Served.NOBODY_YET, "CONTROL_PLANE_UNKNOWN"),
    ],
)
def test_who_is_served(said: link_pb2.TrainerHello, served: Served, reason: str | None) -> None:
    told = refusal(said, job_id="job", control_plane="", served=served, instance_id="i")
    assert (told.reason if told else None) == reason


def test_the_agents_own_address_does_for_a_trainer_that_has_none() -> None:
    said = hello(control_plane="")
    assert (
        refusal(said, job_id="job", control_plane="h:1", served=Served.NOBODY_YET, instance_id="")
        is None
    )


# --------------------------------------------------------------------------------------- options


def test_options_come_from_the_command_line_then_the_environment() -> None:
    environ = {"JOB_ID": "from-env", "MIDCOURSE_CONTROL_PLANE": "env:1"}
    options = parse_options([], environ)
    assert (options.job_id, options.control_plane) == ("from-env", "env:1")
    assert (options.linger, options.log_level, options.socket_dir) == (60.0, "info", None)
    options = parse_options(["--job", "a", "--control-plane", "b:2", "--linger", "0"], environ)
    assert (options.job_id, options.control_plane, options.linger) == ("a", "b:2", 0.0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "no job: name it with --job ID or in the environment as JOB_ID"),
        (["--job", "a", "--linger", "-1"], "must be a number of seconds, 0 or more, got '-1'"),
        (["--job", "a", "--linger", "nan"], "got 'nan'"),
        (["--job", "a", "--linger", "soon"], "got 'soon'"),
        (["--job", "a", "--log-level", "loud"], "invalid choice: 'loud'"),
        (["--job", "a", "--frobnicate"], "unrecognized arguments: --frobnicate"),
    ],
)
def test_wrong_arguments_are_named(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as raised:
        parse_options(arguments, {})
    assert raised.value.code == 2
    printed = capsys.readouterr().err
    assert message in printed
    assert "--help" in printed
    assert "Traceback" not in printed


def test_the_help_says_what_the_agent_does(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as raised:
        parse_options(["--help"], {})
    assert raised.value.code == 0
    printed = capsys.readouterr().out
    for word in ("control plane", "sidecar", "exit status", "MIDCOURSE_SOCKET_DIR", "--linger"):
        assert word in printed
    assert "trainer-fd" not in printed


def test_what_a_roll_back_took_away_is_not_in_force_though_its_outcome_is_told_late() -> None:
    state = TrainerState(session_pb2.FullState())
    outcome = session_pb2.UpdateOutcome(revision=1, rolled_back=True)
    outcome.applied.step = 9
    state.outcome(outcome)
    state.outcome(session_pb2.UpdateOutcome(revision=2, applied=outcome.applied))
    told = state.full([], [])
    assert [(each.first, each.last) for each in told.in_force] == [(2, 2)]
