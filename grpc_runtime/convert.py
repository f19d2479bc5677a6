"""Numbers, times and durations between protobuf and Python."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from grpc_runtime.errors import invalid_argument

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

MAX_COUNT = 2**63 - 1
"""Largest number that is stored; protobuf's unsigned numbers go further."""


def count_of(number: int, field: str) -> int:
    """A number from protobuf that is to be stored.

    Raises:
        StatusError: INVALID_ARGUMENT, if it is too large for that.
    """
    if number > MAX_COUNT:
        raise invalid_argument(field, f"got {number}, allowed: 0 to {MAX_COUNT}")
    return number


def timestamp(time: datetime) -> Timestamp:
    """A time as protobuf."""
    proto = Timestamp()
    proto.FromDatetime(time)
    return proto


def time_of(proto: Timestamp, field: str) -> datetime:
    """A time from protobuf.

    Raises:
        StatusError: INVALID_ARGUMENT, if it is none that can be.
    """
    try:
        nanos = proto.nanos
        if not 0 <= nanos < 1_000_000_000:
            raise ValueError(nanos)
        # As ToDatetime does it, in a fifth of the time: every heartbeat has one.
        return _EPOCH + timedelta(0, proto.seconds, nanos // 1000)
    except (ValueError, OverflowError):
        raise invalid_argument(
            field,
            f"got {proto.seconds} s and {proto.nanos} ns, allowed: a time between the years 1 "
            "and 9999, with 0 to 999999999 ns",
        ) from None


def duration(seconds: float) -> Duration:
    """A duration as protobuf."""
    proto = Duration()
    proto.FromTimedelta(timedelta(seconds=seconds))
    return proto


def seconds_of(proto: Duration, field: str) -> float:
    """A duration from protobuf, in seconds.

    Raises:
        StatusError: INVALID_ARGUMENT, if it is negative or none that can be.
    """
    try:
        seconds = proto.ToTimedelta().total_seconds()
    except (ValueError, OverflowError):
        seconds = -1.0
    if seconds < 0:
        raise invalid_argument(
            field, f"got {proto.seconds} s and {proto.nanos} ns, allowed: 0 or more"
        )
    return seconds
