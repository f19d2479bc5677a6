"""Following a scheduler: being there whenever it steps, and leaving no trace when no longer.

The scheduler's class is replaced by a subclass with another ``step``, on this one object. Its
attributes stay as they are, and with them its ``state_dict``, what a checkpoint holds, and every
``isinstance`` and ``hasattr`` that a training framework asks.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from trainer_agent.parameters.schedulers import STEERED_MARK, is_steered

# What the default `__reduce_ex__` names as constructor; pickle takes it only for the very class of
# the object.
_NEW_OBJECT = object().__reduce_ex__(2)[0]


def follow(scheduler: Any, before: Callable[[], None], after: Callable[[], None]) -> None:
    """Call two functions around every step of a scheduler.

    They must not raise. A step that runs inside another one of the same scheduler is part of it.

    Args:
        scheduler: The scheduler, without wrappers.
        before: Called before each step.
        after: Called after each step, also one that raised.

    Raises:
        TypeError: The scheduler is of a kind whose class cannot be replaced.
    """
    original: Any = type(scheduler)
    running = False

    @functools.wraps(original.step)
    def step(self: Any, *args: Any, **kwargs: Any) -> Any:
        nonlocal running
        if running:
            return original.step(self, *args, **kwargs)
        running = True
        before()
        try:
            return original.step(self, *args, **kwargs)
        finally:
            after()
            running = False

    def reduce_ex(self: Any, protocol: Any) -> Any:
        # Copies and pickles are of the original class: the stand-in serves this one object.
        reduced = original.__reduce_ex__(self, protocol)
        if not isinstance(reduced, tuple) or reduced[0] is not _NEW_OBJECT:
            return reduced
        _, (_, *arguments), *rest = reduced
        return (original.__new__, (original, *arguments), *rest)

    metaclass: Any = type(original)
    scheduler.__class__ = metaclass(
        original.__name__,
        (original,),
        {
            "__slots__": (),
            "__module__": original.__module__,
            "__qualname__": original.__qualname__,
            "__doc__": original.__doc__,
            "__reduce_ex__": reduce_ex,
            "step": step,
            STEERED_MARK: original,
        },
    )


def unfollow(scheduler: Any) -> None:
    """Give a scheduler its own class back; does nothing where it has it."""
    if is_steered(scheduler):
        scheduler.__class__ = vars(type(scheduler))[STEERED_MARK]
