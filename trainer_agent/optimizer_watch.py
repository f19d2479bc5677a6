"""Hears of an optimizer's steps from the optimizer itself, so that no loop has to tell."""

from __future__ import annotations

import logging
import weakref
from typing import Any, Protocol

from trainer_agent.parameters.schedulers import unwrap_optimizer, unwrap_scheduler

logger = logging.getLogger(__name__)


class Watcher(Protocol):
    """Who wants to know."""

    def optimizer_steps(self) -> None:
        """The optimizer is about to step."""
        ...

    def optimizer_stepped(self) -> None:
        """The optimizer has stepped."""
        ...


class OptimizerWatch:
    """Hooks of an optimizer, which keep neither it nor the watcher alive.

    Args:
        optimizer: The optimizer, with any wrappers.
        scheduler: Its scheduler, with any wrappers.
        watcher: Who is told.
    """

    def __init__(self, optimizer: Any, scheduler: Any, watcher: Watcher) -> None:
        self._scheduler = unwrap_scheduler(scheduler)
        self._at_boundary: int | None = None
        self._late = 0
        self._hooks = []
        inner = unwrap_optimizer(optimizer)
        told = weakref.ref(watcher)

        def before(*_: Any) -> None:
            self._check_order()
            if (watching := told()) is not None:
                watching.optimizer_steps()

        def after(*_: Any) -> None:
            if (watching := told()) is not None:
                watching.optimizer_stepped()

        if hasattr(inner, "register_step_post_hook"):
            self._hooks = [
                inner.register_step_pre_hook(before),
                inner.register_step_post_hook(after),
            ]

    def __bool__(self) -> bool:
        """Whether the optimizer tells."""
        return bool(self._hooks)

    def boundary(self) -> None:
        """Note that the loop takes the scheduler to have done its step."""
        self._at_boundary = getattr(self._scheduler, "last_epoch", None)

    def remove(self) -> None:
        """Hear no more of it."""
        for hook in self._hooks:
            hook.remove()

    def _check_order(self) -> None:
        """Tell whoever steps the scheduler after the boundary, where changes are made."""
        if self._at_boundary is None:
            return
        moved = getattr(self._scheduler, "last_epoch", None) != self._at_boundary
        # Once is right where a schedule goes by epochs.
        self._late = self._late + 1 if moved else 0
        if self._late == 2:
            logger.warning(
                "scheduler.step() runs after Loop.step(), which would move a learning rate that "
                "was just set: call Loop.step() after it"
            )
