"""Exceptions of the clients, and what a gRPC status becomes."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final
from urllib.parse import unquote

import grpc

from grpc_runtime.client.trouble import connection_trouble, tls_trouble
from grpc_runtime.errors import FieldViolation, from_rpc_error

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

Code = grpc.StatusCode

TLS: Final = "TLS_FAILED"
"""Reason, made here, where somebody answers, but the two sides can not agree on TLS."""

_TRIED: Final = re.compile(r"\bipv[46]:(\S+?:\d+): ")


class MidcourseError(Exception):
    """Root of everything that a client raises about the service it calls.

    ::

        MidcourseError                  any other status, such as INTERNAL
        ├── InvalidArgumentError        a field of the request is not allowed (see ``violations``)
        ├── NotFoundError               what the request names does not exist
        ├── AlreadyExistsError          it exists already, or the request id was used otherwise
        ├── FailedPreconditionError     not in the state that things are in
        ├── ConflictError               the expected revision or etag is not the current one
        ├── OutOfRangeError             a position or page token is gone: begin anew
        ├── PermissionDeniedError       the caller may not do that
        ├── UnauthenticatedError        the caller did not prove who it is
        ├── ResourceExhaustedError      too large, or too much at once
        ├── UnavailableError            nobody answers there, or not now
        └── DeadlineExceededError       no answer in time; whether it was done is unknown

    A client may add children of its own, for what it finds out without a failed call.

    Attributes:
        code: gRPC status code; None where no call failed.
        message: One line for a person.
        reason: Constant in UPPER_SNAKE for programs; empty if none was given.
        violations: The fields of the request that were refused.
        metadata: Values a program may want, such as the limit that was exceeded.
        retry_delay: Seconds that the server asked to wait; None where it did not.
        request_id: Id of the failed call in the server's log; None if unknown.
    """

    def __init__(
        self,
        message: str,
        *,
        code: grpc.StatusCode | None = None,
        reason: str = "",
        violations: Sequence[FieldViolation] = (),
        metadata: Mapping[str, str] | None = None,
        retry_delay: float | None = None,
        request_id: str | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.code = code
        self.reason = reason
        self.violations = tuple(violations)
        self.metadata = dict(metadata or {})
        self.retry_delay = retry_delay
        self.request_id = request_id

    def __str__(self) -> str:
        """Returns the message and every violation that it does not tell already."""
        parts = [self.message]
        for violation in self.violations:
            if violation.description not in self.message:
                field = f"{violation.field}: " if violation.field else ""
                parts.append(f"{field}{violation.description}")
        return "; ".join(part for part in parts if part)


class InvalidArgumentError(MidcourseError):
    """A field of the request is not allowed, whatever the state of things."""


class NotFoundError(MidcourseError):
    """What the request names does not exist."""


class AlreadyExistsError(MidcourseError):
    """It exists already, or the request id was used with other content."""


class FailedPreconditionError(MidcourseError):
    """The state of things does not allow it: a guard rail, say, or a budget."""


class ConflictError(MidcourseError):
    """The expected revision or etag is not the current one; nothing was changed."""


class OutOfRangeError(MidcourseError):
    """A position or page token is gone; begin anew."""


class PermissionDeniedError(MidcourseError):
    """The caller may not do that."""


class UnauthenticatedError(MidcourseError):
    """The caller did not prove who it is."""


class ResourceExhaustedError(MidcourseError):
    """The message is too large, a quota is used up, or the server has too much to do."""


class UnavailableError(MidcourseError):
    """Nobody answers at the address, or the server is going down or overloaded."""


class DeadlineExceededError(MidcourseError):
    """No answer came in time. Whether the request was carried out is unknown."""


_BY_CODE: Final[dict[grpc.StatusCode, type[MidcourseError]]] = {
    Code.INVALID_ARGUMENT: InvalidArgumentError,
    Code.NOT_FOUND: NotFoundError,
    Code.ALREADY_EXISTS: AlreadyExistsError,
    Code.FAILED_PRECONDITION: FailedPreconditionError,
    Code.ABORTED: ConflictError,
    Code.OUT_OF_RANGE: OutOfRangeError,
    Code.PERMISSION_DENIED: PermissionDeniedError,
    Code.UNAUTHENTICATED: UnauthenticatedError,
    Code.RESOURCE_EXHAUSTED: ResourceExhaustedError,
    Code.UNAVAILABLE: UnavailableError,
    Code.DEADLINE_EXCEEDED: DeadlineExceededError,
}


def from_call(
    error: grpc.RpcError, *, service: str, address: str, secure: bool = False
) -> MidcourseError:
    """Turns what a gRPC call raised into the clients' exception.

    Args:
        error: Of the synchronous or the asynchronous API.
        service: What should be at the address, for people, such as "control plane".
        address: Where the call went; named if nobody answered there.
        secure: Whether the call went over TLS.
    """
    status = from_rpc_error(error)
    message, reason = status.message, status.reason
    if status.code is Code.UNIMPLEMENTED:  # one of our servers says so too, of another's method
        message = f"the server at {address} does not know this call: {message}"
    elif not status.reason:  # not the server's words: gRPC's own, or a proxy's
        if status.code is Code.UNAVAILABLE:
            if trouble := tls_trouble(message):
                message, reason = f"no connection to the {service} at {address}: {trouble}", TLS
            else:
                trouble = connection_trouble(message, secure=secure) or _cause(message, address)
                message = f"no {service} answers at {address} ({trouble})"
        elif status.code is Code.DEADLINE_EXCEEDED:
            message = f"the {service} at {address} did not answer in time"
    return from_code(
        status.code,
        message or status.code.name,
        reason=reason,
        violations=status.violations,
        metadata=status.metadata,
        retry_delay=status.retry_delay,
        request_id=status.request_id,
    )


def from_code(
    code: grpc.StatusCode,
    message: str,
    *,
    reason: str = "",
    violations: Sequence[FieldViolation] = (),
    metadata: Mapping[str, str] | None = None,
    retry_delay: float | None = None,
    request_id: str | None = None,
) -> MidcourseError:
    """Returns the exception that a status code stands for; see :class:`MidcourseError`."""
    return _BY_CODE.get(code, MidcourseError)(
        message,
        code=code,
        reason=reason,
        violations=violations,
        metadata=metadata,
        retry_delay=retry_delay,
        request_id=request_id,
    )


def _cause(details: str, address: str) -> str:
    """Returns the cause at the end of gRPC's chain "failed to …: ipv4:…: Connection refused".

    Of the several addresses that a name may stand for, gRPC tells what the last one said: then
    that one is named.
    """
    cause = details.rpartition(": ")[2].strip().rstrip("]") or "no reason given"
    tried = _TRIED.search(unquote(details))
    if tried is None or tried[1] == address:
        return cause
    return f"{tried[1]}: {cause}"
