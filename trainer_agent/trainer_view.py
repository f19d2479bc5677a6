"""What transformers shows of a run, in our words."""

from __future__ import annotations

import numbers
from typing import TYPE_CHECKING, Any

from trainer_agent.parameters import Boundary

if TYPE_CHECKING:
    from collections.abc import Mapping

    from transformers.trainer_callback import TrainerState

_NOT_METRICS = frozenset({"epoch", "step"})


def saved_state(saved: Any, key: str) -> dict[str, Any] | None:
    """Return what a checkpoint holds under a key of a callback's state; None: nothing."""
    if isinstance(saved, list):  # several callbacks of the class: the first one stands for the run
        saved = saved[0] if saved else None
    state = saved.get(key) if isinstance(saved, dict) else None
    return state if isinstance(state, dict) else None


def boundary_of(state: TrainerState) -> Boundary:
    """Return where a run stands."""
    max_steps = state.max_steps
    return Boundary(state.global_step, max_steps if max_steps > 0 else None, state.epoch)


def numbers_in(logs: Mapping[str, Any]) -> dict[str, float]:
    """Return the logged numbers. A tensor may lie on an accelerator, and is left where it is."""
    return {
        name: float(value)
        for name, value in logs.items()
        if isinstance(value, int | float | numbers.Real)
        and value is not True
        and value is not False
        and name not in _NOT_METRICS
    }
