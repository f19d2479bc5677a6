"""What to do about an error with which the control plane ended a session."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto
from typing import TYPE_CHECKING, Final

import grpc

from trainer_agent.link.protocol import INSTANCE_SUPERSEDED

if TYPE_CHECKING:
    from grpc_runtime.errors import StatusError

SESSION_FENCED: Final = "SESSION_FENCED"
"""Reason of the error that ends a session when a newer one of the same job begins."""

SLOW_RETRY_SECONDS: Final = 60.0
"""How long to wait after a refusal that only a person can mend."""


class Course(Enum):
    """How to go on after a session has failed."""

    RETRY = auto()
    """Try again, after a back-off."""
    RETRY_SLOWLY = auto()
    """Tell the trainer, and try again after a minute: somebody has to mend it first."""
    SUPERSEDED = auto()
    """Tell the trainer and never try again: a newer process has the job."""
    FENCED = auto()
    """A newer session has begun. Whoever still has the trainer may try again."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """A decision about a failed session.

    Attributes:
        course: How to go on.
        reason: Machine-readable reason, for the trainer.
        message: The same in words.
        retry_delay: Wait that the server asked for, in seconds; None: it did not.
    """

    course: Course
    reason: str
    message: str
    retry_delay: float | None


_MENDED_BY_A_PERSON: Final = frozenset(
    {
        grpc.StatusCode.INVALID_ARGUMENT,
        grpc.StatusCode.FAILED_PRECONDITION,
        grpc.StatusCode.PERMISSION_DENIED,
        grpc.StatusCode.UNAUTHENTICATED,
        grpc.StatusCode.UNIMPLEMENTED,
        grpc.StatusCode.NOT_FOUND,
        grpc.StatusCode.ALREADY_EXISTS,
        grpc.StatusCode.OUT_OF_RANGE,
    }
)


def judge(error: StatusError) -> Refusal:
    """Decides what an error means; anything that may pass by itself is tried again."""
    if error.reason == INSTANCE_SUPERSEDED:
        course = Course.SUPERSEDED
    elif error.reason == SESSION_FENCED:
        course = Course.FENCED
    elif error.code in _MENDED_BY_A_PERSON and error.retry_delay is None:
        course = Course.RETRY_SLOWLY
    else:
        course = Course.RETRY
    return Refusal(
        course=course,
        reason=error.reason or error.code.name,
        message=error.message,
        retry_delay=error.retry_delay,
    )
