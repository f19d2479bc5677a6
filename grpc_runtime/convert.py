"""Numbers, times and durations between protobuf and Python."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from grpc_runtime.errors import StatusError, invalid_argument

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_FIRST_SECOND = (datetime.min.replace(tzinfo=UTC) - _EPOCH) // timedelta(seconds=1)
_LAST_SECOND = (datetime.max.replace(tzinfo=UTC) - _EPOCH) // timedelta(seconds=1)

FIRST_MICROSECOND = _FIRST_SECOND * 1_000_000
"""The first time that there is, in microseconds since 1970."""
LAST_MICROSECOND = _LAST_SECOND * 1_000_000 + 999_999
"""The last one."""

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
    # As FromDatetime does it, in a quarter of the time: every update has several.
    since = time - _EPOCH
    return Timestamp(seconds=since.days * 86_400 + since.seconds, nanos=since.microseconds * 1_000)


def time_of(proto: Timestamp, field: str) -> datetime:
    """A time from protobuf.

    Raises:
        StatusError: INVALID_ARGUMENT, if it is none that can be.
    """
    try:
        nanos = proto.nanos
        if not 0 <= nanos < 1_000_000_000:
            raise ValueError(nanos)
        # As ToDatetime does it, in a fifth of the time.
        return _EPOCH + timedelta(0, proto.seconds, nanos // 1000)
    except (ValueError, OverflowError):
        raise _no_time(proto, field) from None


def timestamp_of_micros(micros: int) -> Timestamp:
    """A time in microseconds since 1970 as protobuf."""
    seconds, rest = divmod(micros, 1_000_000)
    return Timestamp(seconds=seconds, nanos=rest * 1_000)


def micros_of(proto: Timestamp, field: str) -> int:
    """A time from protobuf, in microseconds since 1970; takes and raises what `time_of` does."""
    seconds, nanos = proto.seconds, proto.nanos
    if not (_FIRST_SECOND <= seconds <= _LAST_SECOND and 0 <= nanos < 1_000_000_000):
        raise _no_time(proto, field)
    return seconds * 1_000_000 + nanos // 1_000


def _no_time(proto: Timestamp, field: str) -> StatusError:
    return invalid_argument(
        field,
        f"got {proto.seconds} s and {proto.nanos} ns, allowed: a time between the years 1 and "
        "9999, with 0 to 999999999 ns",
    )


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
