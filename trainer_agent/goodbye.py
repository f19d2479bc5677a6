"""Says goodbye for a training process that ends before its training has."""

from __future__ import annotations

import os
import sys
import weakref
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trainer_agent.steering.session import SteeringSession


def goodbye_at_the_latest(owner: Any, session: SteeringSession) -> weakref.finalize[Any, Any]:
    """Close a session when the process ends, or its owner is given up.

    Args:
        owner: Whoever trains; it closes the session itself where training ends before that, and
            then detaches what is returned.
        session: The session, which knows nothing of the owner.
    """
    process = os.getpid()

    def close() -> None:
        if os.getpid() == process:  # a forked child has not ended anything
            session.close(_uncaught_exception() or "it ended before training had")

    return weakref.finalize(owner, close)


def _uncaught_exception() -> str | None:
    error = getattr(sys, "last_value", None)
    return None if error is None else f"{type(error).__name__}: {error}"
