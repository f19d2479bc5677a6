"""What a run can be asked beside changes: to hold, save, evaluate, stop or go back."""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping

from midcourse.control.v1 import update_pb2
from trainer_agent.parameters import Refused


class ActionKind(enum.StrEnum):
    """The kinds of action, by their names in ``Action.kind``."""

    PAUSE = "pause"
    RESUME = "resume"
    SAVE_CHECKPOINT = "save_checkpoint"
    EVALUATE = "evaluate"
    STOP = "stop"
    ROLL_BACK = "roll_back"


_PROTO = {
    ActionKind.PAUSE: update_pb2.ACTION_KIND_PAUSE,
    ActionKind.RESUME: update_pb2.ACTION_KIND_RESUME,
    ActionKind.SAVE_CHECKPOINT: update_pb2.ACTION_KIND_SAVE_CHECKPOINT,
    ActionKind.EVALUATE: update_pb2.ACTION_KIND_EVALUATE,
    ActionKind.STOP: update_pb2.ACTION_KIND_STOP,
    ActionKind.ROLL_BACK: update_pb2.ACTION_KIND_ROLL_BACK,
}

Offer = Mapping[ActionKind, str | None]
"""Why each action can not be carried out in a run; None: it can; left out: it knows nothing of it.
"""


def kind_of(action: update_pb2.Action) -> ActionKind:
    """Return what an action asks for.

    Raises:
        Refused: It asks for nothing, or for something that this version does not know.
    """
    name = action.WhichOneof("kind")
    if name is None:
        raise Refused(
            "ACTION_UNKNOWN",
            "the update asks for an action that this trainer does not know; it knows: "
            + ", ".join(ActionKind),
        )
    return ActionKind(name)


class Actions:
    """Which actions a run offers, and which of them it is in the middle of.

    Pausing and resuming are done as soon as they are begun. Whoever runs the loop sees in
    ``paused`` and ``wanted`` what it has to do, and says in :meth:`done` that it was.

    Args:
        offer: Which there are.
        find_checkpoint: Returns the checkpoint to go back to, given the path asked for (empty:
            the newest) and the step that it has to be from before (None: any), or raises
            ``Refused``.
    """

    def __init__(
        self,
        offer: Offer | None = None,
        find_checkpoint: Callable[[str, int | None], str] | None = None,
    ) -> None:
        self._offer = dict(offer or {})
        self._find_checkpoint = find_checkpoint
        self.paused = False
        """The run is held at its boundary."""
        self.wanted: set[ActionKind] = set()
        """What the loop has still to do: save, evaluate, stop."""
        self.stopping = False
        """No step follows."""

    def offered(self) -> list[update_pb2.ActionKind.ValueType]:
        """Return the actions that the run can carry out."""
        return [_PROTO[kind] for kind, why_not in self._offer.items() if why_not is None]

    def check(self, kind: ActionKind) -> None:
        """Say whether an action can be carried out.

        Raises:
            Refused: It can not; with the reason.
        """
        why_not = self._offer.get(kind, "this training loop has no way to do it")
        if why_not is not None:
            offered = ", ".join(each for each, why in self._offer.items() if why is None)
            raise Refused(
                "ACTION_UNAVAILABLE",
                f"{kind} can not be carried out in this run: {why_not}; it offers: "
                f"{offered or 'no action'}",
            )

    def checkpoint(self, path: str, before: int | None = None) -> str:
        """Return the checkpoint that a roll back goes to.

        Args:
            path: The one asked for; empty: the newest.
            before: For the newest: of fewer optimizer steps than this; None: of any.

        Raises:
            Refused: There is none.
        """
        self.check(ActionKind.ROLL_BACK)
        if self._find_checkpoint is None:
            raise Refused("ACTION_UNAVAILABLE", "this training loop has no checkpoints")
        return self._find_checkpoint(path, before)

    def begin(self, kind: ActionKind) -> bool:
        """Begin an action that was checked; returns whether it is done with that."""
        match kind:
            case ActionKind.PAUSE:
                self.paused = True
            case ActionKind.RESUME:
                self.paused = False
            case _:
                if kind is ActionKind.STOP:
                    self.stopping, self.paused = True, False
                self.wanted.add(kind)
                return False
        return True

    def done(self, kind: ActionKind) -> None:
        """Note that the loop has done what was wanted."""
        self.wanted.discard(kind)

    def give_up(self) -> None:
        """Hold nothing any more and want nothing: nobody could end it."""
        self.paused = False
        self.wanted.clear()
