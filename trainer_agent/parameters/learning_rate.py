"""The learning rate as a live parameter.

Where several parameter groups have different rates, the first group's is the one that is meant
and shown; a change for all groups keeps their ratios. A schedule goes on below every change:

- ``set``: the next step uses exactly this value; the schedule keeps its shape, scaled.
- ``peak``: the schedule is scaled so that what it was built around becomes this value.
- ``hold``: constant. After a bounded hold, what would be there without it.
- ``multiply``: everything in force is scaled, holds and ramps included.
- ``ramp``: in a straight line; its last step uses the value exactly; from there on as ``set``.
- ``schedule``: a new schedule instead of the run's own; later changes scale this one.
- ``release``: the run's own schedule, at the value that it has by then, to the bit.

``set``, ``peak`` and ``schedule`` end a hold or a ramp; ``ramp`` ends a hold.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from trainer_agent.parameters.base import (
    Applied,
    Boundary,
    BoundaryKind,
    Json,
    Kind,
    ParameterSpec,
    Reading,
    Refused,
)
from trainer_agent.parameters.changes import Change, Operation, operation_of
from trainer_agent.parameters.groups import as_stored, find_group, group_names, shares_its_rate
from trainer_agent.parameters.planning import plan
from trainer_agent.parameters.schedulers import unwrap_optimizer, unwrap_scheduler, why_unsteerable
from trainer_agent.parameters.steering import Steering
from trainer_agent.parameters.steering_state import Snapshot

if TYPE_CHECKING:
    from trainer_agent.parameters.overrides import GroupState


class LearningRate:
    """The learning rate of an optimizer and its scheduler; fulfils ``LiveParameter``.

    Reading a rate that lies on an accelerator waits for it. That happens when a change is made,
    verified or saved, never in a step or a tick without one.

    Args:
        optimizer: The optimizer, or a wrapper with it in ``.optimizer`` (accelerate).
        scheduler: Its scheduler, or a wrapper with it in ``.scheduler``; None for a constant rate.
    """

    name = "learning_rate"

    def __init__(self, optimizer: Any, scheduler: Any = None) -> None:
        self._unsteerable = why_unsteerable(optimizer, scheduler)
        self._steering = (
            None
            if self._unsteerable is not None
            else Steering(unwrap_optimizer(optimizer), unwrap_scheduler(scheduler))
        )

    @property
    def steering(self) -> Steering | None:
        """What lies over the scheduler; None where the learning rate can not be steered."""
        return self._steering

    def spec(self) -> ParameterSpec:
        """Declare what can be asked now."""
        unavailable: dict[Operation, str] = {}
        groups: tuple[str, ...] = ()
        if self._steering is None:
            unavailable = dict.fromkeys(Operation, str(self._unsteerable))
        else:
            groups = group_names(self._steering.groups)
            if not self._steering.knows_bases:
                unavailable[Operation.PEAK] = (
                    "the scheduler does not say what value it was built around, and had moved "
                    "before it was first seen"
                )
        return ParameterSpec(
            name=self.name,
            kind=Kind.FLOAT,
            description=(
                "The optimizer's step size. Where parameter groups differ, the first group's; a "
                "change for all groups keeps their ratios."
            ),
            minimum=0.0,
            boundary=BoundaryKind.STEP,
            current=self.read().value,
            operations=frozenset(Operation) - frozenset(unavailable),
            unavailable=unavailable,
            groups=groups,
        )

    def check(self, change: Change, boundary: Boundary) -> None:
        """Say whether ``apply`` would make this change here.

        Raises:
            Refused: It would not; with the reason.
        """
        self._plan(change, boundary)

    def opens(self, change: Change, boundary: Boundary) -> bool:
        """Every boundary is one."""
        return True

    def apply(self, change: Change, boundary: Boundary) -> Applied:
        """Make the change and read it back.

        Raises:
            Refused: It was not made and nothing changed; with the reason.
        """
        steering, states = self._plan(change, boundary)
        before = steering.snapshot()
        old = self.read(synchronise=True)
        try:
            steering.commit(states, boundary.global_step)
            steering.changed_at = boundary.global_step
        except TypeError as error:
            raise Refused(
                "SCHEDULER_NOT_STEERABLE",
                f"the scheduler cannot be followed, so that only changes that scale a LambdaLR "
                f"schedule are possible: {error}",
                value_in_force=old.value,
            ) from error
        return Applied(change, boundary, old, self.read(synchronise=True), before)

    def undo(self, applied: Applied) -> None:
        """Take a change back bit for bit."""
        if self._steering is None or not isinstance(applied.before, Snapshot):
            raise ValueError("this change was not made here")
        self._steering.restore(applied.before)

    def read(self, *, synchronise: bool = False) -> Reading:
        """Return the rates in force, by group."""
        if self._steering is None:
            return Reading({})
        names = group_names(self._steering.groups)
        rates = self._steering.rates(synchronise=synchronise)
        return Reading(dict(zip(names, rates, strict=True)))

    def reference(self) -> float | None:
        """Return the first group's rate if the host knows it. Cheap: meant for every step."""
        if self._steering is None:
            return None
        rate = self._steering.optimizer.param_groups[0]["lr"]
        return rate if type(rate) is float else self._steering.rates(synchronise=False)[0]

    def tick(self, boundary: Boundary) -> None:
        """Move holds, ramps and schedules to their value for the next step.

        Raises:
            RuntimeError: The scheduler could not be followed any further; nothing lies over it
                any more. Raised once.
        """
        if self._steering is None:
            return
        if (failure := self._steering.failure) is not None:
            self._steering.failure = None
            raise RuntimeError(
                "the scheduler could not be followed; its own values are in force again"
            ) from failure
        self._steering.settle(boundary.global_step)

    def verify(self, applied: Applied, used: Reading, boundary: Boundary) -> str | None:
        """Say whether the step after a change used it, and the schedule went on as it should."""
        if self._steering is None:
            return self._unsteerable
        if boundary.global_step <= applied.boundary.global_step:
            return f"no step has run since step {applied.boundary.global_step}"
        rates = [None if rate is None else float(rate) for rate in used.by_group.values()]
        return self._steering.deviation(rates)

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs."""
        return {} if self._steering is None else self._steering.state_dict()

    def load_state_dict(self, state: Json) -> None:
        """Go on from a saved state.

        Raises:
            ValueError: The state does not fit this run; nothing changed.
        """
        if not state:
            return
        if self._steering is None:
            raise ValueError(
                f"the learning rate cannot be steered in this run: {self._unsteerable}"
            )
        self._steering.load_state_dict(state)

    def detach(self) -> None:
        """Leave everything as it is and let go of the scheduler, as at the end of training."""
        if self._steering is not None:
            self._steering.detach()

    def _plan(self, change: Change, boundary: Boundary) -> tuple[Steering, list[GroupState]]:
        steering = self._steering
        if steering is None:
            raise Refused(
                "UNAVAILABLE", f"the learning rate cannot be changed: {self._unsteerable}"
            )
        if change.parameter != self.name:
            raise Refused("UNKNOWN_PARAMETER", f"this is {self.name}, not {change.parameter!r}")
        why = self.spec().unavailable.get(operation_of(change))
        if why is not None:
            raise Refused(
                "UNAVAILABLE",
                f"{operation_of(change).value} is not possible: {why}",
                value_in_force=self.read().value,
            )
        targets = self._targets(steering, change.group)
        states = [state.settled(boundary.global_step) for state in steering.states()]
        planned = plan(change, states, targets, boundary)
        self._check_storable(steering, states, planned, boundary)
        return steering, planned

    def _targets(self, steering: Steering, group: str | None) -> Sequence[int]:
        if group is None:
            return range(len(steering.groups))
        index = find_group(steering.groups, group)
        if index is None:
            raise Refused(
                "UNKNOWN_GROUP",
                f"there is no parameter group {group!r}; there are: "
                + ", ".join(group_names(steering.groups)),
                value_in_force=self.read().value,
            )
        if shares_its_rate(steering.groups, index):
            raise Refused(
                "SHARED_RATE",
                f"parameter group {group!r} shares one learning rate tensor with other groups and "
                "cannot be changed alone; leave the group out to change all",
                value_in_force=self.read().value,
            )
        return [index]

    @staticmethod
    def _check_storable(
        steering: Steering,
        states: Sequence[GroupState],
        planned: Sequence[GroupState],
        boundary: Boundary,
    ) -> None:
        """Refuse what overflows, or vanishes, where it is computed or stored."""
        in_force = states[0].value(boundary.global_step)
        for name, group, old, new in zip(
            group_names(steering.groups), steering.groups, states, planned, strict=True
        ):
            value = new.value(boundary.global_step)
            stored = as_stored(group["lr"], value)
            vanished = stored == 0.0 and (value != 0.0 or (old.own != 0.0 and not _means_zero(new)))
            base_lost = new.base != old.base and not new.base
            if not (new.override.sound and math.isfinite(stored)) or vanished or base_lost:
                raise Refused(
                    "NOT_REPRESENTABLE",
                    f"the learning rate of group {name} would become {value!r}, which is stored as "
                    f"{stored!r}",
                    value_in_force=in_force,
                    for_now=True,
                )


def _means_zero(state: GroupState) -> bool:
    over = state.override
    return over.hold is not None or over.schedule is not None or over.ramp is not None
