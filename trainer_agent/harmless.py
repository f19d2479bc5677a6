"""Keeps what fails in a hook of ours away from the training loop."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar, cast

_Hook = TypeVar("_Hook", bound=Callable[..., None])


def harmless(hook: _Hook) -> _Hook:
    """Have a method's owner told, by ``hook_failed(name, error)``, of what the method raises."""
    name = hook.__name__

    @functools.wraps(hook)
    def guarded(self: Any, *args: Any, **kwargs: Any) -> None:
        try:
            hook(self, *args, **kwargs)
        except Exception as error:  # noqa: BLE001 - nothing of ours may stop a training run
            self.hook_failed(name, error)

    return cast(_Hook, guarded)
