"""Times between protobuf and microseconds since 1970."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import given
from hypothesis import strategies as st

from grpc_runtime.convert import micros_of, time_of, timestamp_of_micros
from grpc_runtime.errors import StatusError

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@given(st.datetimes(timezones=st.just(UTC)))
def test_every_time_comes_back(time: datetime) -> None:
    micros = (time - EPOCH) // timedelta(microseconds=1)
    proto = timestamp_of_micros(micros)
    assert micros_of(proto, "time") == micros
    assert time_of(proto, "time") == time


def refusal(read: Callable[[Timestamp, str], object], proto: Timestamp) -> str:
    """What it says of a time that is none; empty: it takes it."""
    try:
        read(proto, "time")
    except StatusError as error:
        return str(error)
    return ""


@given(st.integers(-(10**11), 3 * 10**11), st.integers(-5, 10**9 + 5))
def test_both_ways_to_read_a_time_take_and_refuse_the_same(seconds: int, nanos: int) -> None:
    proto = Timestamp(seconds=seconds, nanos=nanos)
    assert refusal(micros_of, proto) == refusal(time_of, proto)


@pytest.mark.parametrize(
    ("seconds", "nanos"), [(-62135596801, 0), (253402300800, 0), (0, -1), (0, 1_000_000_000)]
)
def test_what_is_no_time_is_refused(seconds: int, nanos: int) -> None:
    with pytest.raises(StatusError, match="between the years 1 and 9999"):
        micros_of(Timestamp(seconds=seconds, nanos=nanos), "time")
