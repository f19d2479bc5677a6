"""Why a request is refused: one reason code for each rule, one exception for all of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum


class Reason(StrEnum):
    """Machine-readable reason of a refusal. Part of the API: never renamed."""

    INVALID_ARGUMENT = "INVALID_ARGUMENT"
    JOB_NOT_FOUND = "JOB_NOT_FOUND"
    JOB_EXISTS = "JOB_EXISTS"
    JOB_NOT_STARTED = "JOB_NOT_STARTED"
    JOB_FINISHED = "JOB_FINISHED"
    JOB_NOT_SELECTED = "JOB_NOT_SELECTED"
    JOB_HAS_LIVE_SESSION = "JOB_HAS_LIVE_SESSION"
    ETAG_MISMATCH = "ETAG_MISMATCH"
    UPDATE_NOT_FOUND = "UPDATE_NOT_FOUND"
    UPDATE_SETTLED = "UPDATE_SETTLED"
    BATCH_NOT_FOUND = "BATCH_NOT_FOUND"
    BATCH_REFUSED = "BATCH_REFUSED"
    BATCH_SETTLED = "BATCH_SETTLED"
    REVISION_MISMATCH = "REVISION_MISMATCH"
    REQUEST_ID_REUSED = "REQUEST_ID_REUSED"
    PARAMETER_UNKNOWN = "PARAMETER_UNKNOWN"
    PARAMETER_UNAVAILABLE = "PARAMETER_UNAVAILABLE"
    OPERATION_UNSUPPORTED = "OPERATION_UNSUPPORTED"
    GUARD_RAIL = "GUARD_RAIL"
    PARAMETER_FROZEN = "PARAMETER_FROZEN"
    NOT_ALLOWED = "NOT_ALLOWED"
    STEP_IN_PAST = "STEP_IN_PAST"
    DEADLINE_IN_PAST = "DEADLINE_IN_PAST"
    TOO_MANY_PENDING = "TOO_MANY_PENDING"
    TOO_MANY_SESSIONS = "TOO_MANY_SESSIONS"
    SELECTOR_INVALID = "SELECTOR_INVALID"
    PAGE_TOKEN_INVALID = "PAGE_TOKEN_INVALID"  # noqa: S105 - a reason code, not a secret
    POSITION_GONE = "POSITION_GONE"
    WATCHER_TOO_SLOW = "WATCHER_TOO_SLOW"
    PROTOCOL_VERSION_UNSUPPORTED = "PROTOCOL_VERSION_UNSUPPORTED"
    PROTOCOL_VIOLATION = "PROTOCOL_VIOLATION"
    SEQUENCE_REGRESSED = "SEQUENCE_REGRESSED"
    SESSION_FENCED = "SESSION_FENCED"
    INSTANCE_SUPERSEDED = "INSTANCE_SUPERSEDED"
    INSTANCE_UNDECIDED = "INSTANCE_UNDECIDED"
    JOB_DELETED = "JOB_DELETED"
    SHUTTING_DOWN = "SHUTTING_DOWN"
    STORE_UNAVAILABLE = "STORE_UNAVAILABLE"
    OUT_OF_SCOPE = "OUT_OF_SCOPE"
    TOKEN_NOT_FOUND = "TOKEN_NOT_FOUND"  # noqa: S105 - likewise
    TOKEN_UNKNOWN = "TOKEN_UNKNOWN"  # noqa: S105
    TOKEN_REVOKED = "TOKEN_REVOKED"  # noqa: S105
    TOKEN_EXPIRED = "TOKEN_EXPIRED"  # noqa: S105


@dataclass(frozen=True, slots=True)
class Violation:
    """One field that was wrong.

    Attributes:
        field: Path of the field in the request, such as "spec.changes[0].set.value".
        description: What was got, what is allowed.
    """

    field: str
    description: str


class Refusal(Exception):
    """A request that the rules do not allow. Nothing has been changed by it.

    Attributes:
        reason: The rule that refused.
        message: What was wrong, what was got, what is allowed, what to do.
        violations: The fields at fault, where the request itself was wrong.
        metadata: Facts for programs, such as the current revision.
        retry_delay: Seconds after which a retry may succeed; None: it will not by itself.
    """

    def __init__(
        self,
        reason: Reason,
        message: str,
        *,
        violations: Sequence[Violation] = (),
        metadata: Mapping[str, str] | None = None,
        retry_delay: float | None = None,
    ) -> None:
        """Describes the refusal; see the class for the arguments."""
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.violations = tuple(violations)
        self.metadata = dict(metadata or {})
        self.retry_delay = retry_delay


def shutting_down() -> Refusal:
    """The refusal for whoever would wait on a server that is about to go."""
    return Refusal(
        Reason.SHUTTING_DOWN, "the server is shutting down; connect again", retry_delay=1.0
    )


def invalid(field: str, description: str, *, reason: Reason = Reason.INVALID_ARGUMENT) -> Refusal:
    """A refusal because of one field."""
    return Refusal(reason, f"{field}: {description}", violations=[Violation(field, description)])
