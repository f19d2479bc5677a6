"""The client's calls that ask for an action."""

from __future__ import annotations

from typing import TYPE_CHECKING, Unpack

from control_plane import actions

if TYPE_CHECKING:
    from collections.abc import Iterable

    from control_plane._client.requests import UpdateOptions
    from midcourse.control.v1 import update_pb2


class ActionCalls:
    """One call for each action; each is an update, with an update's options and errors.

    An action is carried out once, at a step boundary, and never again: not where its update is
    delivered twice, nor where the run goes back to a checkpoint from before it.
    """

    def update_parameters(
        self,
        job: str,
        changes: Iterable[update_pb2.Change] = (),
        *,
        action: update_pb2.Action | None = None,
        **options: Unpack[UpdateOptions],
    ) -> update_pb2.Update:
        """Asks for changes and an action."""
        raise NotImplementedError

    def pause(self, job: str, **options: Unpack[UpdateOptions]) -> update_pb2.Update:
        """Holds training at a step boundary until :meth:`resume`; updates apply meanwhile."""
        return self.update_parameters(job, action=actions.pause(), **options)

    def resume(self, job: str, **options: Unpack[UpdateOptions]) -> update_pb2.Update:
        """Goes on after a pause; does nothing where training is not paused."""
        return self.update_parameters(job, action=actions.resume(), **options)

    def save_checkpoint(self, job: str, **options: Unpack[UpdateOptions]) -> update_pb2.Update:
        """Saves a checkpoint; with ``wait``, its path is in ``applied.action_result``."""
        return self.update_parameters(job, action=actions.save_checkpoint(), **options)

    def evaluate(self, job: str, **options: Unpack[UpdateOptions]) -> update_pb2.Update:
        """Evaluates; with ``wait``, the metrics are in ``applied.action_result``."""
        return self.update_parameters(job, action=actions.evaluate(), **options)

    def stop(self, job: str, **options: Unpack[UpdateOptions]) -> update_pb2.Update:
        """Saves and ends training in good order; the training process exits with 0."""
        return self.update_parameters(job, action=actions.stop(), **options)

    def roll_back(
        self,
        job: str,
        checkpoint: str = "",
        *,
        changes: Iterable[update_pb2.Change] = (),
        **options: Unpack[UpdateOptions],
    ) -> update_pb2.Update:
        """Goes back to a checkpoint; needs a supervised training process.

        Args:
            job: Id of the job.
            checkpoint: Its path on the training host; by default the newest.
            changes: What to change with it, such as a learning rate that was too high.
            **options: See :class:`UpdateOptions`.
        """
        return self.update_parameters(job, changes, action=actions.roll_back(checkpoint), **options)
