"""How much a server takes on."""

from __future__ import annotations

from typing import Any

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from grpc_runtime.auth import host_of
from grpc_runtime.errors import StatusError
from grpc_runtime.limits import CallLimits, OpenLimit, Strangers

EXHAUSTED = grpc.StatusCode.RESOURCE_EXHAUSTED


class Hand:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def is_taken(limits: CallLimits, principal: str, method: str = "/s/Read") -> bool:
    try:
        limits.enter(principal, method)
    except StatusError as error:
        told = (error.code, error.retry_delay is not None)
    else:
        return True
    assert told == (grpc.StatusCode.RESOURCE_EXHAUSTED, True)
    return False


@given(
    rate=st.floats(0.5, 50),
    waits=st.lists(st.floats(0, 3), min_size=1, max_size=60),
)
def test_in_no_time_more_calls_are_taken_than_the_rate_allows(
    rate: float, waits: list[float]
) -> None:
    clock = Hand()
    limits = CallLimits(calls_per_second=rate, clock=clock)
    taken: list[float] = []
    for wait in waits:
        clock.now += wait
        if is_taken(limits, "a"):
            taken.append(clock.now)
        assert is_taken(CallLimits(calls_per_second=rate, clock=clock), "a")
    for first in range(len(taken)):
        for last in range(first, len(taken)):
            most = max(1.0, rate) + rate * (taken[last] - taken[first])
            assert last - first + 1 <= most + 1e-6


def test_who_waits_as_told_is_taken_and_others_are_not_held_up() -> None:
    clock = Hand()
    limits = CallLimits(calls_per_second=2.0, clock=clock)
    assert [is_taken(limits, "a") for _ in range(3)] == [True, True, False]
    assert is_taken(limits, "b")
    with pytest.raises(StatusError, match="'a' sends more than 2 calls per second") as refused:
        limits.enter("a", "/s/Read")
    assert refused.value.reason == "TOO_MANY_CALLS"
    assert refused.value.retry_delay == pytest.approx(0.5)
    clock.now += 0.5
    assert is_taken(limits, "a")


def test_open_calls_are_counted_in_all_and_for_each_caller() -> None:
    limits = CallLimits(open_limit=OpenLimit("watches", {"/s/Watch"}, 3, 2))
    assert not limits.enter("a", "/s/Read")
    assert limits.enter("a", "/s/Watch")
    assert limits.enter("a", "/s/Watch")
    with pytest.raises(StatusError, match="'a' has 2 watches open"):
        limits.enter("a", "/s/Watch")
    assert limits.enter("b", "/s/Watch")
    with pytest.raises(StatusError, match="this server has 3 watches open") as refused:
        limits.enter("c", "/s/Watch")
    assert (refused.value.reason, refused.value.metadata) == (
        "TOO_MANY_OPEN_CALLS",
        {"limit": "3"},
    )
    limits.leave("a")
    assert limits.enter("c", "/s/Watch")


def test_callers_who_are_quiet_again_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("grpc_runtime.limits._MOST_BUCKETS", 5)
    clock = Hand()
    limits = CallLimits(calls_per_second=1.0, clock=clock)
    for number in range(100):
        clock.now += 0.5
        assert is_taken(limits, f"caller-{number}")
    assert limits._rate is not None
    assert len(limits._rate._full_at) <= 5


def address(number: int) -> str:
    return f"ipv4:10.0.{number // 250}.{number % 250}:{number}"


def test_strangers_are_refused_beyond_the_rate_of_their_address(events: list[Any]) -> None:
    clock = Hand()
    strangers = Strangers(2.0, clock=clock)
    for port in (1, 2):  # whichever port they come from
        assert strangers.refusal(f"ipv4:10.0.0.1:{port}") is None
        assert strangers.failed(f"ipv4:10.0.0.1:{port}") is None
    for refused in (strangers.refusal("ipv4:10.0.0.1:3"), strangers.failed("ipv4:10.0.0.1:4")):
        assert refused is not None
        assert (refused.code, refused.reason) == (EXHAUSTED, "TOO_MANY_REFUSED_CALLS")
        assert refused.retry_delay == pytest.approx(0.5)
        assert "10.0.0.1" in refused.message
    assert strangers.refusal("ipv4:10.0.0.2:3") is None
    clock.now += 0.5
    assert strangers.failed("ipv4:10.0.0.1:5") is None
    for _ in range(100):  # the log is not filled
        assert strangers.failed("ipv4:10.0.0.1:6") is not None
    assert len(events) == 1
    clock.now += 10.0
    for _ in range(3):
        strangers.failed("ipv4:10.0.0.1:6")
    assert [each["calls"] for each in events] == [1, 101]


def test_strangers_from_everywhere_take_no_more_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("grpc_runtime.limits._MOST_BUCKETS", 50)
    strangers = Strangers(1.0, clock=Hand())
    refused = [strangers.failed(address(number)) is not None for number in range(200)]
    assert refused == [False] * 50 + [True] * 150
    assert len(strangers._rate._full_at) == 50
    assert strangers.refusal(address(199)) is None  # it may still show good credentials


@pytest.mark.parametrize(
    ("peer", "host"),
    [
        ("ipv4:10.0.0.1:50051", "10.0.0.1"),
        ("ipv6:%5B2001:db8::1%5D:50051", "2001:db8::/64"),
        ("ipv6:[2001:db8::2]:1", "2001:db8::/64"),
        ("ipv6:[2001:db8:0:1::2]:1", "2001:db8:0:1::/64"),
        ("ipv6:[::ffff:10.0.0.1]:1", "10.0.0.1"),
        ("ipv6:[::1]:1", "::1"),
        ("unix:/tmp/some.sock", "unix"),
        ("unix:", "unix"),
        ("unknown", "unknown"),
    ],
)
def test_where_a_peer_comes_from(peer: str, host: str) -> None:
    assert host_of(peer) == host
