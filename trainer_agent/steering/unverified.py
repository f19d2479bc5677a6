"""An update that is in force and whose outcome is not known yet.

Its first step has not confirmed it, or its action is still under way. A checkpoint may be saved in
between: then this rides in it, and the resumed run goes on from there.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from google.protobuf.message import DecodeError

from midcourse.control.v1 import update_pb2
from trainer_agent.parameters import Applied, Boundary, Reading, Refused
from trainer_agent.steering.actions import ActionKind
from trainer_agent.steering.convert import change_from_proto, change_to_proto
from trainer_agent.steering.lineage import decoded, encoded

if TYPE_CHECKING:
    from midcourse.agent.v1 import session_pb2


@dataclass(slots=True)
class Unverified:
    """One update between being applied and being reported as applied."""

    outcome: session_pb2.UpdateOutcome
    """What will be reported once it is confirmed."""
    boundary: Boundary
    """Where it was applied."""
    applied: dict[str, Applied]
    """The last change that it made of each parameter; empty: none."""
    undo: tuple[Applied, ...] = ()
    """All that it did, in order; empty where it came with a checkpoint."""
    request_id: str = ""
    """For what this process did by itself: by which it is known."""
    waits_for: ActionKind | None = None
    """The action whose result is still to come; None: none is."""

    @property
    def revision(self) -> int:
        """The update's revision; 0: it has none yet."""
        return self.outcome.revision

    def to_json(self) -> dict[str, Any]:
        """Return it as plain numbers, strings, lists and mappings."""
        return {
            "outcome": encoded(self.outcome),
            "request_id": self.request_id,
            "waits_for": self.waits_for,
            "boundary": {
                "global_step": self.boundary.global_step,
                "max_steps": self.boundary.max_steps,
                "epoch": self.boundary.epoch,
            },
            "applied": {
                name: {
                    "change": base64.b64encode(
                        change_to_proto(applied.change).SerializeToString(deterministic=True)
                    ).decode("ascii"),
                    "old": dict(applied.old.by_group),
                    "new": dict(applied.new.by_group),
                }
                for name, applied in self.applied.items()
            },
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Unverified:
        """Read what ``to_json`` returned.

        Raises:
            ValueError: It is something else.
        """
        try:
            boundary = Boundary(**data["boundary"])
            waits_for = data["waits_for"]
            return cls(
                outcome=decoded(data["outcome"]),
                boundary=boundary,
                request_id=str(data["request_id"]),
                waits_for=None if waits_for is None else ActionKind(waits_for),
                applied={
                    name: Applied(
                        change=change_from_proto(
                            update_pb2.Change.FromString(
                                base64.b64decode(each["change"], validate=True)
                            )
                        ),
                        boundary=boundary,
                        old=Reading(dict(each["old"])),
                        new=Reading(dict(each["new"])),
                        before=None,
                    )
                    for name, each in data["applied"].items()
                },
            )
        except (KeyError, TypeError, ValueError, binascii.Error, DecodeError, Refused) as error:
            raise ValueError(f"the saved update is damaged: {error!r}") from error
