"""The client's calls that change one job; each is an update, in other words.

They are written once for both kinds of client, which differ in what the one call returns that
they all make: an update, or what becomes one when it is awaited.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Generic, TypeVar, Unpack

from control_plane import actions
from control_plane import changes as changes_
from midcourse.control.v1 import update_pb2

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from datetime import datetime, timedelta

    from control_plane._client.requests import UpdateOptions
    from control_plane.changes import Coupling, Mode, ParameterValue, Shape

_Answer = TypeVar("_Answer")


class ChangeCalls(ABC, Generic[_Answer]):
    """Ways to change parameters, with an update's options and errors."""

    @abstractmethod
    def update_parameters(
        self,
        job: str,
        changes: Iterable[update_pb2.Change] = (),
        *,
        action: update_pb2.Action | None = None,
        **options: Unpack[UpdateOptions],
    ) -> _Answer:
        """Asks for changes and an action."""

    def set(
        self,
        job: str,
        values: Mapping[str, ParameterValue | update_pb2.Change] | None = None,
        /,
        *,
        mode: Mode = "set",
        hold_steps: int | None = None,
        group: str = "",
        coupling: Coupling = "none",
        at_step: int | None = None,
        max_step: int | None = None,
        deadline: datetime | timedelta | None = None,
        reason: str = "",
        force: bool = False,
        expected_revision: int | None = None,
        request_id: str | None = None,
        validate_only: bool = False,
        wait: bool = False,
        wait_timeout: float | None = None,
        **parameters: ParameterValue | update_pb2.Change,
    ) -> _Answer:
        """Sets parameters: ``plane.set("my-run", learning_rate=5e-5, wait=True)``.

        Parameters are given by keyword or, where a name is taken by an option, in a mapping. What
        is a change already (see :mod:`control_plane.changes`) goes along as it is. ``mode``,
        ``hold_steps``, ``group`` and ``coupling`` are those of
        :func:`control_plane.changes.set_value`, the other options those of
        :class:`UpdateOptions`, the errors those of :meth:`update_parameters`.
        """
        return self.update_parameters(
            job,
            [
                value
                if isinstance(value, update_pb2.Change)
                else changes_.set_value(
                    name, value, mode=mode, hold_steps=hold_steps, group=group, coupling=coupling
                )
                for name, value in {**(values or {}), **parameters}.items()
            ],
            at_step=at_step,
            max_step=max_step,
            deadline=deadline,
            reason=reason,
            force=force,
            expected_revision=expected_revision,
            request_id=request_id,
            validate_only=validate_only,
            wait=wait,
            wait_timeout=wait_timeout,
        )

    def multiply(
        self,
        job: str,
        factors: Mapping[str, float],
        *,
        group: str = "",
        **options: Unpack[UpdateOptions],
    ) -> _Answer:
        """Scales parameters: ``plane.multiply("my-run", {"learning_rate": 0.5})``."""
        scaled = [changes_.multiply(name, factor, group=group) for name, factor in factors.items()]
        return self.update_parameters(job, scaled, **options)

    def ramp(
        self,
        job: str,
        values: Mapping[str, ParameterValue],
        *,
        steps: int,
        group: str = "",
        **options: Unpack[UpdateOptions],
    ) -> _Answer:
        """Takes parameters linearly to values over a number of optimizer steps."""
        ramps = [
            changes_.ramp(name, value, steps=steps, group=group) for name, value in values.items()
        ]
        return self.update_parameters(job, ramps, **options)

    def schedule(
        self,
        job: str,
        parameter: str,
        shape: Shape,
        *,
        peak: float | None = None,
        warmup_steps: int = 0,
        floor: float = 0.0,
        steps: int | None = None,
        group: str = "",
        **options: Unpack[UpdateOptions],
    ) -> _Answer:
        """Gives a parameter a new schedule; see :func:`control_plane.changes.schedule`."""
        change = changes_.schedule(
            parameter,
            shape,
            peak=peak,
            warmup_steps=warmup_steps,
            floor=floor,
            steps=steps,
            group=group,
        )
        return self.update_parameters(job, [change], **options)

    def release(
        self, job: str, *parameters: str, group: str = "", **options: Unpack[UpdateOptions]
    ) -> _Answer:
        """Gives parameters back to the schedule that the training script made."""
        released = [changes_.release(name, group=group) for name in parameters]
        return self.update_parameters(job, released, **options)


class ActionCalls(ChangeCalls[_Answer]):
    """One call for each action.

    An action is carried out once, at a step boundary, and never again: not where its update is
    delivered twice, nor where the run goes back to a checkpoint from before it.
    """

    def pause(self, job: str, **options: Unpack[UpdateOptions]) -> _Answer:
        """Holds training at a step boundary until :meth:`resume`; updates apply meanwhile."""
        return self.update_parameters(job, action=actions.pause(), **options)

    def resume(self, job: str, **options: Unpack[UpdateOptions]) -> _Answer:
        """Goes on after a pause; does nothing where training is not paused."""
        return self.update_parameters(job, action=actions.resume(), **options)

    def save_checkpoint(self, job: str, **options: Unpack[UpdateOptions]) -> _Answer:
        """Saves a checkpoint; with ``wait``, its path is in ``applied.action_result``."""
        return self.update_parameters(job, action=actions.save_checkpoint(), **options)

    def evaluate(self, job: str, **options: Unpack[UpdateOptions]) -> _Answer:
        """Evaluates; with ``wait``, the metrics are in ``applied.action_result``."""
        return self.update_parameters(job, action=actions.evaluate(), **options)

    def stop(self, job: str, **options: Unpack[UpdateOptions]) -> _Answer:
        """Saves and ends training in good order; the training process exits with 0."""
        return self.update_parameters(job, action=actions.stop(), **options)

    def roll_back(
        self,
        job: str,
        checkpoint: str = "",
        *,
        changes: Iterable[update_pb2.Change] = (),
        **options: Unpack[UpdateOptions],
    ) -> _Answer:
        """Goes back to a checkpoint; needs a supervised training process.

        Args:
            job: Id of the job.
            checkpoint: Its path on the training host; by default the newest.
            changes: What to change with it, such as a learning rate that was too high.
            **options: See :class:`UpdateOptions`.
        """
        return self.update_parameters(job, changes, action=actions.roll_back(checkpoint), **options)
