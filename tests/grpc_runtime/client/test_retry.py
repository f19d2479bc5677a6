"""When a call is tried again."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grpc_runtime.client.errors import MidcourseError, ResourceExhaustedError, UnavailableError
from grpc_runtime.client.retry import RetryPolicy, Tries


@given(
    failures=st.integers(1, 10_000),
    advised=st.none() | st.floats(0, 1000),
    initial=st.floats(0.001, 5),
    factor=st.floats(1, 100),
)
def test_backoff_is_bounded_and_honours_advice(
    failures: int, advised: float | None, initial: float, factor: float
) -> None:
    policy = RetryPolicy(initial=initial, maximum=initial * factor)
    delay = policy.backoff(failures, advised)
    least = advised or 0.0
    assert least <= delay <= least + policy.maximum * (1 + 1e-9)
    assert delay <= least + initial * 2.0 ** min(failures - 1, 60) * (1 + 1e-9)


def test_a_policy_that_makes_no_sense_is_refused() -> None:
    with pytest.raises(ValueError, match="attempts"):
        RetryPolicy(attempts=0)
    with pytest.raises(ValueError, match="initial"):
        RetryPolicy(initial=2.0, maximum=1.0)


def test_only_the_transient_is_retried() -> None:
    policy = RetryPolicy(attempts=3)
    assert policy.delay(1, UnavailableError("x")) is not None
    assert policy.delay(3, UnavailableError("x")) is None
    assert policy.delay(1, MidcourseError("x")) is None


def test_overload_is_transient_only_if_the_server_says_when() -> None:
    policy = RetryPolicy(attempts=3)
    assert policy.delay(1, ResourceExhaustedError("too large")) is None
    assert (policy.delay(1, ResourceExhaustedError("busy", retry_delay=1.5)) or 0.0) >= 1.5


@given(
    seconds=st.floats(0, 100),
    attempts=st.integers(1, 20),
    takes=st.lists(st.floats(0, 10), min_size=20, max_size=20),
    repeatable=st.booleans(),
)
def test_the_tries_of_a_call_are_bounded_in_number_and_time(
    seconds: float, attempts: int, takes: list[float], repeatable: bool
) -> None:
    now = 0.0
    tries = Tries(RetryPolicy(attempts=attempts), seconds, repeatable=repeatable, clock=lambda: now)
    begun = 0
    for take in takes:
        begun += 1
        assert 0 <= tries.seconds_left <= seconds
        now += min(take, tries.seconds_left)  # a deadline ends the try
        delay = tries.delay_after(UnavailableError("down"))
        if delay is None:
            break
        now += delay
        assert now <= seconds
    assert begun <= (attempts if repeatable else 1)
