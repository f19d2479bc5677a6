"""What a control plane asks of a loop that somebody wrote by hand."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

from trainer_agent.steering.actions import ActionKind

if TYPE_CHECKING:
    from trainer_agent.steering.actions import Actions

HANDLED: Final = (ActionKind.SAVE_CHECKPOINT, ActionKind.EVALUATE, ActionKind.STOP)
"""What a loop can be asked to do itself. Being held and going on it need not know of."""


class Signal:
    """What the loop has to do now. Stays up to date: what was done is not asked for any more.

    Args:
        actions: What there is to do; None: nothing, ever.
        saves: Whether the loop saves checkpoints when asked.
    """

    def __init__(self, actions: Actions | None, *, saves: bool) -> None:
        self._actions = actions
        self._saves = saves

    @property
    def evaluate(self) -> bool:
        """Evaluate, and say what came out with ``Loop.report``."""
        return self._actions is not None and ActionKind.EVALUATE in self._actions.wanted

    @property
    def save(self) -> bool:
        """Save a checkpoint, and say where it is with ``Loop.saved``."""
        if self._actions is None:
            return False
        wanted = self._actions.wanted
        return ActionKind.SAVE_CHECKPOINT in wanted or (self._saves and ActionKind.STOP in wanted)

    @property
    def stop(self) -> bool:
        """Leave the loop. If it can save, ``save`` has asked for that first."""
        return self._actions is not None and self._actions.stopping


def handled(actions: Iterable[str]) -> tuple[ActionKind, ...]:
    """Return the actions that a loop says it does.

    Raises:
        ValueError: There is no such action, or none that a loop could do.
    """
    asked = tuple(actions)
    if unknown := set(asked) - set(HANDLED):
        raise ValueError(
            f"a loop can be asked for {', '.join(HANDLED)}; got {', '.join(sorted(unknown))}"
        )
    return tuple(ActionKind(each) for each in asked)
