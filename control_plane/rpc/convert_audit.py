"""Audit records between protobuf and the domain."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from control_plane.domain.audit import AuditPlace, AuditQuery, AuditRecord
from grpc_runtime import paging
from grpc_runtime.convert import time_of, timestamp
from midcourse.control.v1 import access_pb2 as pb

if TYPE_CHECKING:
    from datetime import datetime


def query_of(request: pb.ListAuditRecordsRequest) -> AuditQuery:
    """Which records are asked for.

    Raises:
        StatusError: INVALID_ARGUMENT, a time is none that can be.
    """

    def time(name: Literal["start_time", "end_time"]) -> datetime | None:
        return time_of(getattr(request, name), name) if request.HasField(name) else None

    return AuditQuery(
        principal=request.principal,
        resource=request.resource.rstrip("/"),
        start=time("start_time"),
        end=time("end_time"),
    )


def record(of: AuditRecord) -> pb.AuditRecord:
    """A record in the API's terms."""
    return pb.AuditRecord(
        time=timestamp(of.time),
        principal=of.principal,
        peer=of.peer,
        method=of.method,
        resource=of.resource,
        summary=of.summary,
        reason=of.reason,
        code=of.code,
        error_reason=of.error_reason,
        request_id=of.request_id,
    )


def write_place(place: AuditPlace | None) -> str | None:
    """What a page token says of a place."""
    return None if place is None else paging.write_place(place.time, place.key)


def read_place(text: str | int | None) -> AuditPlace | None:
    """The place that a page token names; None: the first page is asked for.

    Raises:
        StatusError: INVALID_ARGUMENT, the token was made up.
    """
    if text is None:
        return None
    time, (key,) = paging.read_place(text, 1)
    return AuditPlace(time, key)
