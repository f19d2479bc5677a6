"""The one line that joins a trainer to a control plane."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from trainer_agent.callback import RuntimeParameterUpdateCallback
from trainer_agent.steering.links import LinkFactory, default_link

if TYPE_CHECKING:
    from trainer_agent.parameters import GuardRails, LiveParameter
    from trainer_agent.steering.protection import Protection


def attach(
    trainer: Any,
    job: str | None = None,
    control_plane: str | None = None,
    labels: Mapping[str, str] | None = None,
    *,
    guard_rails: Mapping[str, GuardRails] | None = None,
    parameters: Iterable[LiveParameter] = (),
    protection: Protection | None = None,
    replay: str | os.PathLike[str] | None = None,
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
        guard_rails: Limits that nobody gets past, by live parameter::

                guard_rails={"learning_rate": GuardRails(maximum=1e-3, max_relative_change=3)}
        parameters: Live parameters of the script's own: see
            :class:`trainer_agent.parameters.user.Parameter`.
        protection: What is done about a loss that is not finite; None: nothing. Left out of a
            replay, whose file has what was done.
        replay: A file with the history of a run, which is applied again here; there is no control
            plane then. None: there is.
        link_factory: Makes the link to the agent; for tests and other transports.

    Returns:
        The callback that does it.

    Raises:
        TypeError: This is no trainer.
        ValueError: The job id is not well formed, the trainer is attached with other settings, or
            there is something wrong with the file to be replayed.
        OSError: That file can not be read.
    """
    handler = getattr(trainer, "callback_handler", None)
    if handler is None or not callable(getattr(trainer, "add_callback", None)):
        raise TypeError(
            f"attach needs a transformers Trainer or one derived from it, such as TRL's, got a "
            f"{type(trainer).__name__}"
        )
    if replay is not None:
        from trainer_agent.replay import replay_link_factory

        link_factory = replay_link_factory(replay)
        protection = None  # what it did is in the file, and nobody could resume a second pause
    callback = RuntimeParameterUpdateCallback(
        job,
        control_plane,
        labels,
        guard_rails=guard_rails,
        parameters=parameters,
        protection=protection,
        link_factory=link_factory,
    )
    for present in handler.callbacks:
        if isinstance(present, RuntimeParameterUpdateCallback):
            asked = (job, control_plane, labels, guard_rails, parameters, protection, replay)
            if replay is not None or (any(asked) and present.settings() != callback.settings()):
                raise ValueError(
                    f"the trainer is attached already, with {present.settings()!r}, and now "
                    f"{callback.settings()!r} is asked for: attach it once"
                )
            present.bind(trainer)
            return present
    callback.bind(trainer)
    trainer.add_callback(callback)
    return callback
