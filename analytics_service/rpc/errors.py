"""The error catalogue: which gRPC status each reason of a refusal stands for."""

from __future__ import annotations

import grpc

from analytics_service.errors import Reason, Refusal
from grpc_runtime.errors import FieldViolation, StatusError

DOMAIN = "midcourse.analytics"

_Code = grpc.StatusCode

CATALOGUE: dict[Reason, grpc.StatusCode] = {
    Reason.INVALID_ARGUMENT: _Code.INVALID_ARGUMENT,
    Reason.NOT_ALLOWED: _Code.PERMISSION_DENIED,
    Reason.MODEL_UNKNOWN: _Code.INVALID_ARGUMENT,
    Reason.MODEL_RETIRED: _Code.FAILED_PRECONDITION,
    Reason.MODEL_UNAVAILABLE: _Code.FAILED_PRECONDITION,
    Reason.SESSION_NOT_FOUND: _Code.NOT_FOUND,
    Reason.MESSAGE_NOT_FOUND: _Code.NOT_FOUND,
    Reason.SESSION_BUSY: _Code.FAILED_PRECONDITION,
    Reason.ETAG_MISMATCH: _Code.ABORTED,
    Reason.REQUEST_ID_REUSED: _Code.ALREADY_EXISTS,
    Reason.BUDGET_EXCEEDED: _Code.RESOURCE_EXHAUSTED,
    Reason.CONTEXT_TOO_LONG: _Code.INVALID_ARGUMENT,
    Reason.TOO_MANY_ROUNDS: _Code.FAILED_PRECONDITION,
    Reason.PROVIDER_REFUSED: _Code.FAILED_PRECONDITION,
    Reason.PROVIDER_UNAUTHENTICATED: _Code.FAILED_PRECONDITION,
    Reason.PROVIDER_RATE_LIMITED: _Code.UNAVAILABLE,
    Reason.PROVIDER_UNAVAILABLE: _Code.UNAVAILABLE,
    Reason.PROVIDER_TIMEOUT: _Code.UNAVAILABLE,
    Reason.PROVIDER_STREAM_BROKEN: _Code.UNAVAILABLE,
    Reason.CHAT_FAILED: _Code.INTERNAL,
    Reason.CHAT_INTERRUPTED: _Code.UNAVAILABLE,
    Reason.SHUTTING_DOWN: _Code.UNAVAILABLE,
    Reason.STORE_UNAVAILABLE: _Code.UNAVAILABLE,
}


def translate(error: Exception) -> StatusError | None:
    """The API error that a refusal stands for; None for any other exception."""
    if not isinstance(error, Refusal):
        return None
    return StatusError(
        CATALOGUE[error.reason],
        error.message,
        reason=error.reason,
        domain=DOMAIN,
        metadata=error.metadata,
        violations=[FieldViolation(v.field, v.description) for v in error.violations],
        retry_delay=error.retry_delay,
    )


def code_of(refusal: Refusal) -> int:
    """The gRPC status code of a refusal, as a number."""
    number: int = CATALOGUE[refusal.reason].value[0]
    return number
