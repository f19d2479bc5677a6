"""The shared plumbing's errors, in the control plane's own terms."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from control_plane.domain.errors import Reason, Refusal
from grpc_runtime.sql import (
    DatabaseClosedError,
    DatabaseUnavailableError,
    UnstorableTextError,
)


class StoreError(Exception):
    """The database can not be opened. The message says why and what to do."""


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
            Reason.SHUTTING_DOWN, "the server is shutting down; try again", retry_delay=1.0
        ) from error
    except UnstorableTextError as error:
        raise Refusal(Reason.INVALID_ARGUMENT, f"{error}; send it without") from error
