"""The shared plumbing's errors, as refusals."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from analytics_service.errors import Reason, Refusal
from grpc_runtime.sql import (
    DatabaseClosedError,
    DatabaseUnavailableError,
    UnstorableTextError,
)


@contextmanager
def refusing() -> Iterator[None]:
    """Turns what goes wrong with the database into a refusal.

    Raises:
        Refusal: STORE_UNAVAILABLE if the database can not be used now, SHUTTING_DOWN if
            it was closed, INVALID_ARGUMENT if a text can not be stored.
    """
    try:
        yield
    except DatabaseUnavailableError as error:
        raise Refusal(
            Reason.STORE_UNAVAILABLE, str(error), retry_delay=error.retry_delay
        ) from error
    except DatabaseClosedError as error:
        raise Refusal(
            Reason.SHUTTING_DOWN,
            "the analytics service is shutting down; try again",
            retry_delay=1.0,
        ) from error
    except UnstorableTextError as error:
        raise Refusal(Reason.INVALID_ARGUMENT, f"{error}; send it without") from error


def session_not_found(session_id: str) -> Refusal:
    """There is no such session."""
    return Refusal(
        Reason.SESSION_NOT_FOUND,
        f"there is no session {session_id!r}; list the sessions, or begin a new one",
    )


def session_busy(session_id: str, number: int) -> Refusal:
    """An answer is running."""
    return Refusal(
        Reason.SESSION_BUSY,
        f"message {number} of session {session_id!r} is still being written; wait for its end, "
        "or cancel it",
        metadata={"session": session_id, "message": str(number)},
    )


def etag_mismatch(session_id: str, got: int, current: int) -> Refusal:
    """The session has changed since the caller looked at it."""
    return Refusal(
        Reason.ETAG_MISMATCH,
        f"session {session_id!r} has changed: it stands at version {current}, got the etag of "
        f"version {got}; get it again and decide anew",
        metadata={"version": str(current)},
    )


def request_id_reused(request_id: str) -> Refusal:
    """The same id of another request."""
    return Refusal(
        Reason.REQUEST_ID_REUSED,
        f"request_id {request_id!r} was used before for a request with other content; use a new "
        "one for each request, and the same one only to repeat it",
    )


def message_not_found(session_id: str, number: int) -> Refusal:
    """There is no such message."""
    return Refusal(
        Reason.MESSAGE_NOT_FOUND,
        f"session {session_id!r} has no message {number}; the session may have been deleted",
    )
