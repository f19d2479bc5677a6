"""API errors: one exception on both sides of the wire.

A server raises :class:`StatusError`; it travels as ``google.rpc.Status`` with ``ErrorInfo``,
``BadRequest`` and ``RetryInfo`` details; a client gets it back with :func:`from_rpc_error`.
Nothing here needs a server, so clients and command-line tools import it freely.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import grpc
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

REQUEST_ID_KEY = "x-request-id"
"""Metadata key that carries the request id, both ways."""

STATUS_LOST = "STATUS_LOST"
"""Reason of an error whose status was lost on the client's side; see :func:`from_rpc_error`."""

MESSAGE_TOO_LARGE = "MESSAGE_TOO_LARGE"
"""Reason of an error that gRPC itself makes where a message exceeds either side's limit."""

_TOO_LARGE = re.compile(r"message larger than max \((?P<size>\d+) vs\. (?P<limit>\d+)\)")
_WRITE_FAILED_DETAILS = "Internal error from Core"  # grpc.aio's, when a message cannot be sent

# Clients on gRPC's C core start to drop calls whose trailing metadata exceeds 8 KiB. The reserve
# is for the request id and for the names and the 32 bytes that HTTP/2 counts for every header.
_TRAILER_LIMIT_BYTES = 8192 - 512
_MESSAGE_LIMIT_BYTES = 1024
_REASON_LIMIT_BYTES = 128
_METADATA_LIMIT_BYTES = 1024
_METADATA_KEY_LIMIT_BYTES = 64
_TEXT_LIMIT_BYTES = 512
_ELLIPSIS = "…"


@dataclass(frozen=True, slots=True)
class FieldViolation:
    """One field of a request that was refused.

    Attributes:
        field: Path of the field in the request, such as ``changes[0].value``.
        description: What was got and what is allowed.
    """

    field: str
    description: str


class StatusError(Exception):
    """An API error, as a server raises it and as a client receives it.

    Attributes:
        code: The gRPC status code; never ``OK``.
        message: One line for a person: what was wrong and what to do.
        reason: Constant in UPPER_SNAKE for programs; empty if the other side sent none.
        domain: Who defines ``reason``; empty means the service that raises it, which fills it in.
        metadata: Values a program may want, such as the limit that was exceeded.
        violations: The fields that were refused.
        retry_delay: Seconds to wait before trying again; None where no advice is given.
        request_id: Id of the failed call, on the client's side; None if unknown.
    """

    def __init__(
        self,
        code: grpc.StatusCode,
        message: str,
        *,
        reason: str,
        domain: str = "",
        metadata: Mapping[str, str] | None = None,
        violations: Sequence[FieldViolation] = (),
        retry_delay: float | None = None,
        request_id: str | None = None,
    ) -> None:
        """Describes an error.

        Raises:
            ValueError: ``code`` is OK, or ``retry_delay`` is negative.
        """
        if code is grpc.StatusCode.OK:
            raise ValueError("OK is not an error: give a StatusError another status code")
        if retry_delay is not None and not retry_delay >= 0:
            raise ValueError(f"retry_delay must be 0 or more seconds, got {retry_delay}")
        super().__init__(message)
        self.code = code
        self.message = message
        self.reason = reason
        self.domain = domain
        self.metadata: dict[str, str] = dict(metadata or {})
        self.violations = tuple(violations)
        self.retry_delay = retry_delay
        self.request_id = request_id

    def __str__(self) -> str:
        """Returns the message followed by each violation, for people."""
        lines = [self.message]
        lines += [
            f"{v.field}: {v.description}" if v.field else v.description for v in self.violations
        ]
        return "; ".join(line for line in lines if line)

    def __repr__(self) -> str:
        """Returns code, reason and message."""
        return f"StatusError({self.code.name}, {self.message!r}, reason={self.reason!r})"


def invalid_argument(field: str, description: str) -> StatusError:
    """The error for one field of a request that is not allowed.

    Args:
        field: Path of the field in the request.
        description: What was got and what is allowed.
    """
    return StatusError(
        grpc.StatusCode.INVALID_ARGUMENT,
        f"{field}: {description}",
        reason="INVALID_ARGUMENT",
        violations=[FieldViolation(field, description)],
    )


def to_proto(error: StatusError, *, default_domain: str = "") -> status_pb2.Status:
    """Packs an error into ``google.rpc.Status``, small enough for trailing metadata.

    What does not fit is cut and says so: a text ends in an ellipsis, the list of violations in
    "and N more", the metadata in an entry ``omitted`` with the number of entries left out.

    Args:
        error: What to pack.
        default_domain: The domain used where the error names none.
    """
    message = _fit(error.message, _MESSAGE_LIMIT_BYTES, measure=_percent_encoded_size)
    status = status_pb2.Status(code=error.code.value[0], message=message)
    if error.reason:
        info = error_details_pb2.ErrorInfo(
            reason=_fit(error.reason, _REASON_LIMIT_BYTES),
            domain=_fit(error.domain or default_domain, _REASON_LIMIT_BYTES),
            metadata=_fit_metadata(error.metadata),
        )
        status.details.add().Pack(info)
    if error.retry_delay is not None:
        delay = Duration()
        delay.FromNanoseconds(round(error.retry_delay * 1e9))
        status.details.add().Pack(error_details_pb2.RetryInfo(retry_delay=delay))
    if error.violations:
        # Binary metadata travels in base64 (4 bytes for 3), the message once more in plain.
        room = (_TRAILER_LIMIT_BYTES - _percent_encoded_size(message)) * 3 // 4
        room -= status.ByteSize()
        status.details.add().Pack(_fit_violations(error.violations, room))
    return status


def trailing_metadata(status: status_pb2.Status) -> tuple[tuple[str, bytes], ...]:
    """Returns the trailing metadata that carries a rich status."""
    packed: Any = rpc_status.to_status(status)
    return tuple(packed.trailing_metadata)


def from_proto(status: status_pb2.Status, *, request_id: str | None = None) -> StatusError:
    """Unpacks a ``google.rpc.Status``; details of unknown types are passed over.

    Args:
        status: What a server sent; a code that is none of gRPC's reads as UNKNOWN.
        request_id: Id of the call, if known.
    """
    reason = domain = ""
    metadata: dict[str, str] = {}
    violations: list[FieldViolation] = []
    retry_delay: float | None = None
    info = error_details_pb2.ErrorInfo()
    bad_request = error_details_pb2.BadRequest()
    retry = error_details_pb2.RetryInfo()
    for detail in status.details:
        if detail.Unpack(info):
            reason, domain, metadata = info.reason, info.domain, dict(info.metadata)
        elif detail.Unpack(bad_request):
            violations += [
                FieldViolation(v.field, v.description) for v in bad_request.field_violations
            ]
        elif detail.Unpack(retry):
            delay = retry.retry_delay
            retry_delay = max(0.0, delay.seconds + delay.nanos / 1e9)
    return StatusError(
        _CODES.get(status.code, grpc.StatusCode.UNKNOWN),
        status.message,
        reason=reason,
        domain=domain,
        metadata=metadata,
        violations=violations,
        retry_delay=retry_delay,
        request_id=request_id,
    )


def from_rpc_error(error: grpc.RpcError) -> StatusError:
    """Turns what a gRPC client call raised into a :class:`StatusError`.

    Works on ``grpc.aio.AioRpcError`` and on the errors of the synchronous API. An error without
    rich details (the server could not be reached, a proxy answered) has an empty ``reason``.

    If a streaming call ends while the client sends, grpc.aio reports that the sending failed, as
    an INTERNAL of its own, and drops what the server said; that becomes UNAVAILABLE with reason
    ``STATUS_LOST``. Where a message exceeds a limit of gRPC's, the reason is ``MESSAGE_TOO_LARGE``.
    """
    call: Any = error
    if not hasattr(call, "code"):  # grpc.RpcError itself promises nothing
        return StatusError(grpc.StatusCode.UNKNOWN, str(error), reason="")
    request_id = next(
        (
            value if isinstance(value, str) else value.decode(errors="replace")
            for key, value in call.trailing_metadata() or ()
            if key == REQUEST_ID_KEY
        ),
        None,
    )
    try:
        status = rpc_status.from_call(call)
    except (ValueError, DecodeError):
        status = None  # the details contradict the status or are no Status: believe the status
    if status is not None and status.code != 0:
        return from_proto(status, request_id=request_id)
    code, message = call.code(), call.details() or ""
    if code is grpc.StatusCode.INTERNAL and message == _WRITE_FAILED_DETAILS:
        return StatusError(
            grpc.StatusCode.UNAVAILABLE,
            "the call ended while a message was being sent; how it ended is not known",
            reason=STATUS_LOST,
        )
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED and (too_large := _TOO_LARGE.search(message)):
        return StatusError(
            code,
            f"a message of {too_large['size']} bytes is too large: the limit is"
            f" {too_large['limit']} (max_message_bytes of the server, and of the client); send less"
            " at once, or ask for smaller pages or fewer points",
            reason=MESSAGE_TOO_LARGE,
            metadata={"limit": too_large["limit"]},
            request_id=request_id,
        )
    if not isinstance(code, grpc.StatusCode) or code is grpc.StatusCode.OK:
        code = grpc.StatusCode.UNKNOWN
    return StatusError(code, message, reason="", request_id=request_id)


_CODES: dict[int, grpc.StatusCode] = {
    code.value[0]: code for code in grpc.StatusCode if code is not grpc.StatusCode.OK
}


def _valid_utf8(text: str) -> str:
    """Replaces lone surrogates, which neither protobuf nor gRPC can carry."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _utf8_size(text: str) -> int:
    return len(text.encode("utf-8"))


def _percent_encoded_size(text: str) -> int:
    """Size of a status message on the wire, where all but plain ASCII takes 3 bytes a byte."""
    return len(quote(text, safe=" !\"#$&'()*+,-./:;<=>?@[\\]^_`{|}~"))


def _fit(text: str, limit: int, measure: Any = _utf8_size) -> str:
    """Returns the text, or as much of its start as fits into ``limit`` with an ellipsis."""
    text = _valid_utf8(text)
    if measure(text) <= limit:
        return text
    low, high = 0, min(len(text), limit)
    while low < high:
        middle = (low + high + 1) // 2
        if measure(text[:middle] + _ELLIPSIS) <= limit:
            low = middle
        else:
            high = middle - 1
    return text[:low] + _ELLIPSIS


def _fit_metadata(metadata: Mapping[str, str]) -> dict[str, str]:
    fitted: dict[str, str] = {}
    room = _METADATA_LIMIT_BYTES
    for index, (key, value) in enumerate(metadata.items()):
        short_key = _fit(key, _METADATA_KEY_LIMIT_BYTES)
        short_value = _fit(value, _TEXT_LIMIT_BYTES)
        room -= _utf8_size(short_key) + _utf8_size(short_value)
        if room < 0:
            fitted["omitted"] = str(len(metadata) - index)
            break
        fitted[short_key] = short_value
    return fitted


def _fit_violations(
    violations: Sequence[FieldViolation], room: int
) -> error_details_pb2.BadRequest:
    """Returns as many violations as fit into ``room`` bytes, and how many more there were."""
    packed = [
        error_details_pb2.BadRequest.FieldViolation(
            field=_fit(v.field, _TEXT_LIMIT_BYTES),
            description=_fit(v.description, _TEXT_LIMIT_BYTES),
        )
        for v in violations
    ]
    room -= 128  # the packed message's type name and lengths, and "and N more"
    kept = 0
    for violation in packed:
        room -= violation.ByteSize() + 4
        if room < 0:
            break
        kept += 1
    return error_details_pb2.BadRequest(
        field_violations=[*packed[:kept], *_and_more(len(packed) - kept)]
    )


def _and_more(count: int) -> Iterable[error_details_pb2.BadRequest.FieldViolation]:
    if count:
        yield error_details_pb2.BadRequest.FieldViolation(description=f"and {count} more")
