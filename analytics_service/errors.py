"""Why a request is refused: one reason code for each rule, one exception for all of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import NamedTuple


class Reason(StrEnum):
    """Machine-readable reason of a refusal. Part of the API: never renamed."""

    INVALID_ARGUMENT = "INVALID_ARGUMENT"
    NOT_ALLOWED = "NOT_ALLOWED"
    MODEL_UNKNOWN = "MODEL_UNKNOWN"
    MODEL_RETIRED = "MODEL_RETIRED"
    MODEL_UNAVAILABLE = "MODEL_UNAVAILABLE"
    SESSION_NOT_FOUND = "SESSION_NOT_FOUND"
    MESSAGE_NOT_FOUND = "MESSAGE_NOT_FOUND"
    SESSION_BUSY = "SESSION_BUSY"
    ETAG_MISMATCH = "ETAG_MISMATCH"
    REQUEST_ID_REUSED = "REQUEST_ID_REUSED"
    BUDGET_EXCEEDED = "BUDGET_EXCEEDED"
    CONTEXT_TOO_LONG = "CONTEXT_TOO_LONG"
    TOO_MANY_ROUNDS = "TOO_MANY_ROUNDS"
    PROVIDER_REFUSED = "PROVIDER_REFUSED"
    PROVIDER_UNAUTHENTICATED = "PROVIDER_UNAUTHENTICATED"
    PROVIDER_RATE_LIMITED = "PROVIDER_RATE_LIMITED"
    PROVIDER_UNAVAILABLE = "PROVIDER_UNAVAILABLE"
    PROVIDER_TIMEOUT = "PROVIDER_TIMEOUT"
    PROVIDER_STREAM_BROKEN = "PROVIDER_STREAM_BROKEN"
    CHAT_FAILED = "CHAT_FAILED"
    CHAT_INTERRUPTED = "CHAT_INTERRUPTED"
    SHUTTING_DOWN = "SHUTTING_DOWN"
    STORE_UNAVAILABLE = "STORE_UNAVAILABLE"


class Violation(NamedTuple):
    """One field that was wrong.

    Attributes:
        field: Path of the field in the request, such as "session.title".
        description: What was got, what is allowed.
    """

    field: str
    description: str


class Refusal(Exception):  # noqa: N818 - a refusal is no programming error
    """A request that the rules do not allow, or an answer that could not be got.

    Attributes:
        reason: The rule that refused.
        message: What was wrong, what was got, what is allowed, what to do.
        violations: The fields at fault, where the request itself was wrong.
        metadata: Facts for programs, such as a retired model's successor.
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


def invalid(field: str, description: str) -> Refusal:
    """A refusal because of one field."""
    return Refusal(
        Reason.INVALID_ARGUMENT,
        f"{field}: {description}",
        violations=[Violation(field, description)],
    )
