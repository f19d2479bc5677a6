from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from analytics_service.providers.base import Fault, ProviderError
from analytics_service.providers.retry import RetryPolicy

TRANSIENT = [Fault.RATE_LIMITED, Fault.UNAVAILABLE, Fault.TIMEOUT, Fault.STREAM_BROKEN]
POLICY = RetryPolicy(attempts=5, initial=1.0, maximum=6.0, budget=100.0)


def error(fault: Fault = Fault.UNAVAILABLE, retry_after: float | None = None) -> ProviderError:
    return ProviderError(fault, "no luck", retry_after=retry_after)


@pytest.mark.parametrize("fault", Fault)
def test_only_what_may_pass_is_tried_again(fault: Fault) -> None:
    assert (POLICY.delay(1, error(fault), lambda: 0.5) is not None) == (fault in TRANSIENT)


def test_delays_double_up_to_the_maximum() -> None:
    almost_one = math.nextafter(1.0, 0.0)
    delays = [POLICY.delay(failures, error(), lambda: almost_one) for failures in range(1, 6)]
    assert delays[:4] == pytest.approx([1.0, 2.0, 4.0, 6.0])
    assert delays[4] is None


def test_jitter_is_full() -> None:
    assert POLICY.delay(3, error(), lambda: 0.0) == 0.0
    assert POLICY.delay(3, error(), lambda: 0.5) == 2.0


def test_retry_after_is_honoured_and_given_up_where_it_is_too_long() -> None:
    limited = Fault.RATE_LIMITED
    assert POLICY.delay(1, error(limited, 5.0), lambda: 0.0) == 5.0
    assert POLICY.delay(1, error(limited, 5.0), lambda: 0.5) == 5.5
    assert POLICY.delay(1, error(limited, 6.0), lambda: 0.5) == 6.0
    assert POLICY.delay(1, error(limited, 6.1), lambda: 0.0) is None


def test_the_budget_ends_it() -> None:
    policy = RetryPolicy(attempts=100, initial=1.0, maximum=1.0, budget=3.0)
    assert policy.delay(1, error(), lambda: 0.5, waited=2.5) == 0.5
    assert policy.delay(1, error(), lambda: 0.5, waited=2.6) is None


@given(
    failures=st.integers(1, 10**6),
    chance=st.floats(0, 1, exclude_max=True),
    advised=st.none() | st.floats(0, 1e9),
    waited=st.floats(0, 1e6),
)
def test_delays_are_bounded(
    failures: int, chance: float, advised: float | None, waited: float
) -> None:
    policy = RetryPolicy(attempts=10**9, initial=0.5, maximum=20.0, budget=60.0)
    delay = policy.delay(failures, error(retry_after=advised), lambda: chance, waited)
    if delay is not None:
        assert (advised or 0.0) <= delay <= 20.0
        assert waited + delay <= 60.0


@pytest.mark.parametrize(
    "wrong",
    [
        {"attempts": 0},
        {"initial": 0.0},
        {"initial": 3.0, "maximum": 2.0},
        {"budget": -1.0},
        {"budget": math.nan},
    ],
)
def test_values_out_of_range_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        RetryPolicy(**wrong)  # type: ignore[arg-type]  # attempts are whole in the cases
