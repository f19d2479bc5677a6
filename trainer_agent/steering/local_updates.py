"""What the training process has changed by itself and has no revision for yet."""

from __future__ import annotations

import base64
import binascii
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from google.protobuf.message import DecodeError

from midcourse.agent.v1 import session_pb2
from midcourse.control.v1 import update_pb2
from trainer_agent.parameters import Refused
from trainer_agent.steering.guard_rails import GUARD

MAX_LOCAL = 100
"""Local updates kept; with no control plane to take them, nothing more is done by itself."""

_NAMED = 10

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class _Local:
    update: update_pb2.Update
    outcome: session_pb2.UpdateOutcome | None = None
    superseded: bool = False
    """The run has gone back to before it, so that it is in force no more."""

    def to_json(self) -> dict[str, Any]:
        outcome = self.outcome
        return {
            "update": _text(self.update.SerializeToString(deterministic=True)),
            "outcome": ""
            if outcome is None
            else _text(outcome.SerializeToString(deterministic=True)),
            "superseded": self.superseded,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> _Local:
        """Read what ``to_json`` returned.

        Raises:
            ValueError: It is something else.
        """
        try:
            outcome = data["outcome"]
            return cls(
                update_pb2.Update.FromString(_bytes(data["update"])),
                session_pb2.UpdateOutcome.FromString(_bytes(outcome)) if outcome else None,
                bool(data["superseded"]),
            )
        except (KeyError, TypeError, binascii.Error, DecodeError) as error:
            raise ValueError(f"the saved local updates are damaged: {error!r}") from error


class LocalUpdates:
    """The book of local updates. Their revision is 0 until the control plane has given them one.

    Args:
        instance_id: Names the training process, so that no two of them use the same request id.
    """

    def __init__(self, instance_id: str) -> None:
        self._prefix = f"{GUARD}-{instance_id[:16]}"
        self._made = 0
        self._kept: dict[str, _Local] = {}
        self._untold: list[str] = []
        self._lost = ""

    def __contains__(self, request_id: str) -> bool:
        return request_id in self._kept

    def __len__(self) -> int:
        return len(self._kept)

    def new(self, spec: update_pb2.UpdateSpec) -> update_pb2.Update:
        """Return a new local update; it is in the book only once it is kept."""
        self._made += 1
        return update_pb2.Update(spec=spec, author=GUARD, request_id=f"{self._prefix}-{self._made}")

    def keep(self, update: update_pb2.Update) -> None:
        """Put an update that was made into the book, to be told.

        Raises:
            Refused: The book is full.
        """
        if len(self._kept) >= MAX_LOCAL:
            raise Refused(
                "TOO_MANY_LOCAL",
                f"{MAX_LOCAL} updates that this process made by itself are waiting for the control "
                "plane, which is the limit; let the run reach its control plane",
            )
        self._kept[update.request_id] = _Local(update)
        self._untold.append(update.request_id)

    def drop(self, request_id: str) -> None:
        """Forget an update that came to nothing before anybody was told of it."""
        self._kept.pop(request_id, None)
        if request_id in self._untold:
            self._untold.remove(request_id)

    def settle(
        self, request_id: str, outcome: session_pb2.UpdateOutcome
    ) -> session_pb2.UpdateOutcome | None:
        """Record how one ended.

        Returns:
            Its outcome, where the control plane has given it a revision already.
        """
        local = self._kept[request_id]
        local.outcome = outcome
        return self._finished(request_id, local)

    def deliver(self, update: update_pb2.Update) -> session_pb2.UpdateOutcome | None:
        """Take the revision that the control plane has given to one.

        Returns:
            Its outcome; None: that is still to come.
        """
        local = self._kept[update.request_id]
        local.update.revision = update.revision
        return self._finished(update.request_id, local)

    def _finished(self, request_id: str, local: _Local) -> session_pb2.UpdateOutcome | None:
        if local.outcome is None or not local.update.revision:
            return None
        self.drop(request_id)
        local.outcome.revision = local.update.revision
        return local.outcome

    @property
    def has_news(self) -> bool:
        """Whether there is one that was not told yet, or that was lost."""
        return bool(self._untold or self._lost)

    def take_untold(self) -> list[session_pb2.LocalUpdate]:
        """Return those since the last call."""
        untold, self._untold = self._untold, []
        return [_message(self._kept[request_id].update) for request_id in untold]

    def take_lost(self) -> str:
        """Return in words what was lost since the last call; empty: nothing."""
        lost, self._lost = self._lost, ""
        return lost

    def all(self) -> list[session_pb2.LocalUpdate]:
        """Return all, oldest first."""
        return [_message(local.update) for local in self._kept.values()]

    def is_superseded(self, request_id: str) -> bool:
        """Say whether the run has gone back to before it."""
        return self._kept[request_id].superseded

    def state_dict(self) -> list[dict[str, Any]]:
        """Return the book as JSON."""
        return [local.to_json() for local in self._kept.values()]

    def load_state_dict(self, state: Sequence[Mapping[str, Any]]) -> None:
        """Read what ``state_dict`` returned.

        Raises:
            ValueError: It is something else.
        """
        kept = {local.update.request_id: local for local in map(_Local.from_json, state)}
        self._kept, self._untold = kept, list(kept)

    def take_over(self, state: Sequence[Mapping[str, Any]]) -> None:
        """Take what a process has left that went back to before the checkpoint gone on from.

        What the checkpoint does not have is in force no more. It has still to be told, and of what
        was not confirmed by then nothing more becomes known. What there is no room for is lost,
        which is logged and told.

        Args:
            state: What ``state_dict`` returned there.

        Raises:
            ValueError: It is something else.
        """
        lost: list[str] = []
        for left in map(_Local.from_json, state):
            request_id = left.update.request_id
            if request_id in self._kept:
                continue
            # One place is for what has asked for the roll back.
            if len(self._kept) >= MAX_LOCAL - 1:
                lost.append(request_id)
            else:
                left.superseded = True
                if left.outcome is None:
                    left.outcome = session_pb2.UpdateOutcome(
                        rejected=update_pb2.Rejected(
                            reason="ROLLED_BACK",
                            message="the run went back to a checkpoint before a step used the "
                            "change",
                        )
                    )
                left.outcome.rolled_back = True
                self._kept[request_id] = left
                self._untold.append(request_id)
        if lost:
            named = ", ".join(lost[:_NAMED]) + (", ..." if len(lost) > _NAMED else "")
            self._lost = (
                f"{len(lost)} of the updates that the run made by itself before it went back will "
                f"never be in its history, as {MAX_LOCAL} wait to be told, which is the limit, and "
                f"what they changed is in force no more: {named}; let the run reach its control "
                "plane"
            )
            logger.warning("%s", self._lost)


def _message(update: update_pb2.Update) -> session_pb2.LocalUpdate:
    return session_pb2.LocalUpdate(request_id=update.request_id, spec=update.spec)


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def _bytes(text: str) -> bytes:
    return base64.b64decode(text, validate=True)
