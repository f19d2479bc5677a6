"""The one line that joins a trainer to a control plane."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trainer_agent.callback import RuntimeParameterUpdateCallback
from trainer_agent.session import LinkFactory, default_link


def attach(
    trainer: Any,
    job: str | None = None,
    control_plane: str | None = None,
    labels: Mapping[str, str] | None = None,
    *,
    link_factory: LinkFactory = default_link,
) -> RuntimeParameterUpdateCallback:
    """Let a Hugging Face or TRL trainer be watched and steered while it trains.

    To be called before ``trainer.train()``. Attaching a second time with the same arguments, or
    with none, returns the callback of the first.

    Args:
        trainer: The trainer.
        job: Id of the job; None: see :class:`RuntimeParameterUpdateCallback`.
        control_plane: Address of the control plane, ``host:port``; None: likewise.
        labels: Labels of the job.
        link_factory: Makes the link to the agent; for tests and other transports.

    Returns:
        The callback that does it.

    Raises:
        TypeError: This is no trainer.
        ValueError: The job id is not well formed, or the trainer is attached with other settings.
    """
    handler = getattr(trainer, "callback_handler", None)
    if handler is None or not callable(getattr(trainer, "add_callback", None)):
        raise TypeError(
            f"attach needs a transformers Trainer or one derived from it, such as TRL's, got a "
            f"{type(trainer).__name__}"
        )
    callback = RuntimeParameterUpdateCallback(job, control_plane, labels, link_factory=link_factory)
    for present in handler.callbacks:
        if isinstance(present, RuntimeParameterUpdateCallback):
            nothing_asked = job is None and control_plane is None and not labels
            if not nothing_asked and present.settings() != callback.settings():
                raise ValueError(
                    f"the trainer is attached already, with job, control plane and labels "
                    f"{present.settings()!r}, and now {callback.settings()!r} is asked for: attach "
                    "it once"
                )
            present.bind(trainer)
            return present
    callback.bind(trainer)
    trainer.add_callback(callback)
    return callback
