"""What became of an update: the control plane client's own exceptions."""

from __future__ import annotations

from grpc_runtime.client.errors import MidcourseError
from midcourse.control.v1 import update_pb2


class UpdateError(MidcourseError):
    """What became of an update after it was accepted; no call failed.

    ::

        MidcourseError
        └── UpdateError                 what became of an update (see ``update``)
            ├── UpdateNotAppliedError   settled otherwise: rejected, expired or cancelled
            └── UpdateTimeoutError      not settled within the time to wait; it still may be

    Attributes:
        update: The update as it stood.
    """

    def __init__(self, message: str, *, update: update_pb2.Update, reason: str = "") -> None:
        super().__init__(message, reason=reason)
        self.update = update


class UpdateNotAppliedError(UpdateError):
    """The update is settled and was not applied: rejected, expired or cancelled."""


class UpdateTimeoutError(UpdateError):
    """The update was not settled within the time to wait; it stays accepted."""


def not_applied(update: update_pb2.Update) -> UpdateNotAppliedError:
    """Describes a settled update that was not applied."""
    if update.HasField("rejected"):
        why, reason = update.rejected.message, update.rejected.reason
    elif update.HasField("expired"):
        why = update.expired.message
        reason = update_pb2.ExpiryCause.Name(update.expired.cause)
    else:
        by = f" by {update.cancelled.principal}" if update.cancelled.principal else ""
        why, reason = f"withdrawn{by}", "CANCELLED"
        if update.cancelled.reason:
            why += f": {update.cancelled.reason}"
    state = update_pb2.UpdateState.Name(update.state).removeprefix("UPDATE_STATE_")
    return UpdateNotAppliedError(
        f"{update.name} was not applied: {state}{f', {why}' if why else ''}",
        update=update,
        reason=reason,
    )


def not_settled(update: update_pb2.Update, waited: float) -> UpdateTimeoutError:
    """Describes an update that is not settled after ``waited`` seconds."""
    state = update_pb2.UpdateState.Name(update.state).removeprefix("UPDATE_STATE_")
    return UpdateTimeoutError(
        f"{update.name} is still {state} after {waited:g} s; it stays accepted", update=update
    )
