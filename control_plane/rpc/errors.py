"""The error catalogue: which gRPC status each reason of a refusal stands for."""

from __future__ import annotations

import grpc

from control_plane.domain.errors import Reason, Refusal
from grpc_runtime.errors import FieldViolation, StatusError

DOMAIN = "midcourse.control"

_Code = grpc.StatusCode

CATALOGUE: dict[Reason, grpc.StatusCode] = {
    Reason.INVALID_ARGUMENT: _Code.INVALID_ARGUMENT,
    Reason.JOB_NOT_FOUND: _Code.NOT_FOUND,
    Reason.JOB_EXISTS: _Code.ALREADY_EXISTS,
    Reason.JOB_NOT_STARTED: _Code.FAILED_PRECONDITION,
    Reason.JOB_FINISHED: _Code.FAILED_PRECONDITION,
    Reason.JOB_NOT_SELECTED: _Code.NOT_FOUND,
    Reason.JOB_HAS_LIVE_SESSION: _Code.FAILED_PRECONDITION,
    Reason.ETAG_MISMATCH: _Code.ABORTED,
    Reason.UPDATE_NOT_FOUND: _Code.NOT_FOUND,
    Reason.UPDATE_SETTLED: _Code.FAILED_PRECONDITION,
    Reason.BATCH_NOT_FOUND: _Code.NOT_FOUND,
    Reason.BATCH_REFUSED: _Code.FAILED_PRECONDITION,
    Reason.BATCH_SETTLED: _Code.FAILED_PRECONDITION,
    Reason.REVISION_MISMATCH: _Code.ABORTED,
    Reason.REQUEST_ID_REUSED: _Code.ALREADY_EXISTS,
    Reason.PARAMETER_UNKNOWN: _Code.INVALID_ARGUMENT,
    Reason.PARAMETER_UNAVAILABLE: _Code.FAILED_PRECONDITION,
    Reason.OPERATION_UNSUPPORTED: _Code.INVALID_ARGUMENT,
    Reason.GUARD_RAIL: _Code.FAILED_PRECONDITION,
    Reason.PARAMETER_FROZEN: _Code.FAILED_PRECONDITION,
    Reason.NOT_ALLOWED: _Code.PERMISSION_DENIED,
    Reason.STEP_IN_PAST: _Code.FAILED_PRECONDITION,
    Reason.DEADLINE_IN_PAST: _Code.INVALID_ARGUMENT,
    Reason.TOO_MANY_PENDING: _Code.RESOURCE_EXHAUSTED,
    Reason.TOO_MANY_SESSIONS: _Code.RESOURCE_EXHAUSTED,
    Reason.SELECTOR_INVALID: _Code.INVALID_ARGUMENT,
    Reason.PAGE_TOKEN_INVALID: _Code.INVALID_ARGUMENT,
    Reason.POSITION_GONE: _Code.OUT_OF_RANGE,
    Reason.WATCHER_TOO_SLOW: _Code.RESOURCE_EXHAUSTED,
    Reason.PROTOCOL_VERSION_UNSUPPORTED: _Code.FAILED_PRECONDITION,
    Reason.PROTOCOL_VIOLATION: _Code.INVALID_ARGUMENT,
    Reason.SEQUENCE_REGRESSED: _Code.INVALID_ARGUMENT,
    Reason.SESSION_FENCED: _Code.ABORTED,
    Reason.INSTANCE_SUPERSEDED: _Code.FAILED_PRECONDITION,
    Reason.INSTANCE_UNDECIDED: _Code.ABORTED,
    Reason.JOB_DELETED: _Code.NOT_FOUND,
    Reason.SHUTTING_DOWN: _Code.UNAVAILABLE,
    Reason.STORE_UNAVAILABLE: _Code.UNAVAILABLE,
    Reason.OUT_OF_SCOPE: _Code.PERMISSION_DENIED,
    Reason.TOKEN_NOT_FOUND: _Code.NOT_FOUND,
    Reason.TOKEN_UNKNOWN: _Code.UNAUTHENTICATED,
    Reason.TOKEN_REVOKED: _Code.UNAUTHENTICATED,
    Reason.TOKEN_EXPIRED: _Code.UNAUTHENTICATED,
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
