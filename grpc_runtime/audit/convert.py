"""Audit records in messages, of whichever API: by the names of their fields."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, TypeVar

from grpc_runtime import paging
from grpc_runtime.audit.records import AuditPlace, AuditQuery, AuditRecord
from grpc_runtime.convert import time_of, timestamp

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

    from grpc_runtime.audit.log import AuditLog

_Message = TypeVar("_Message")


def _query_of(request: Any) -> AuditQuery:
    """Which records a ListAuditRecordsRequest asks for.

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


def _record(of: AuditRecord, message: Callable[..., _Message]) -> _Message:
    """A record in an API's terms.

    Args:
        of: The record.
        message: The API's class for it.
    """
    return message(
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


def _write_place(place: AuditPlace | None) -> str | None:
    """What a page token says of a place."""
    return None if place is None else paging.write_place(place.time, place.key)


def _read_place(text: str | int | None) -> AuditPlace | None:
    """The place that a page token names; None: the first page is asked for.

    Raises:
        StatusError: INVALID_ARGUMENT, the token was made up.
    """
    if text is None:
        return None
    time, (key,) = paging.read_place(text, 1)
    return AuditPlace(time, key)


async def page(log: AuditLog, request: Any, message: Callable[..., _Message]) -> dict[str, Any]:
    """Returns the fields of the answer to a ListAuditRecordsRequest.

    Raises:
        StatusError: INVALID_ARGUMENT, the request makes no sense.
    """
    what = type(request)()
    what.CopyFrom(request)
    what.ClearField("page_token")
    what.ClearField("page_size")
    query = f"audit|{what.SerializeToString(deterministic=True).hex()}"
    found = await log.list(
        _query_of(request),
        beyond=_read_place(paging.read_token(request.page_token, query)),
        limit=paging.page_size(request.page_size),
    )
    return {
        "records": [_record(each, message) for each in found.records],
        "next_page_token": paging.write_token(_write_place(found.next_beyond), query),
    }
