"""The warm-up of a schedule that transformers built, while it lasts.

Changing it re-plans the whole schedule: from the next step on the rates are those of a run that was
started with the new warm-up. So there are other values only while neither the old nor the new
warm-up is over; afterwards the rate would jump, and the learning rate has operations for that.
What lies over the schedule (a scale, a hold, a ramp) stays where it is.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from trainer_agent.parameters.base import EVERY_GROUP, Applied, Boundary, Kind, Reading, Refused
from trainer_agent.parameters.data.stretch import original_shape
from trainer_agent.parameters.schedulers import sinks_scales, unwrap_optimizer, unwrap_scheduler
from trainer_agent.parameters.value import ValueParameter, Values

if TYPE_CHECKING:
    from trainer_agent.parameters.changes import Change, Value
    from trainer_agent.parameters.steering import Steering
    from trainer_agent.run import Run

Shape = functools.partial[float]
"""A schedule of transformers: the factor over the base rate, by scheduler steps done."""


class Schedule:
    """A ``LambdaLR`` that transformers built and that can be built again for another warm-up.

    Args:
        scheduler: The scheduler, without wrappers.
        steering: What lies over it.
        rebuild: Returns its function for a number of warm-up steps.
        length: Optimizer steps that it was built for.
    """

    def __init__(
        self, scheduler: Any, steering: Steering, rebuild: Callable[[int], Shape], length: int
    ) -> None:
        self.steering = steering
        self.length = length
        self._scheduler = scheduler
        self._rebuild = rebuild

    @property
    def shapes(self) -> list[Any]:
        """The functions in force, one for each parameter group."""
        shapes: list[Any] = self._scheduler.lr_lambdas
        return shapes

    @property
    def warmup(self) -> int:
        """The warm-up in force, in steps."""
        steps: int = original_shape(self.shapes[0]).keywords["num_warmup_steps"]
        return steps

    @property
    def done(self) -> int:
        """The steps that the scheduler has made."""
        steps: int = self._scheduler.last_epoch
        return steps

    @property
    def stretched(self) -> bool:
        """Whether it is followed at another pace than it was planned for."""
        return any(original_shape(shape) is not shape for shape in self.shapes)

    def put_warmup(self, steps: int) -> None:
        """Follow the schedule as it is with another warm-up. The rates stay as they are."""
        self.shapes[:] = [self._rebuild(steps)] * len(self.shapes)


class WarmupSteps(ValueParameter):
    """The warm-up in optimizer steps.

    Args:
        schedule: What to re-plan; or why that is not possible.
    """

    name: ClassVar[str] = "warmup_steps"
    affects: ClassVar[frozenset[str]] = frozenset({"warmup_ratio"})
    kind: ClassVar[Kind] = Kind.INT
    description: ClassVar[str] = (
        "Optimizer steps of the warm-up. Changing it re-plans the schedule as if it had begun "
        "so; possible until the old warm-up is over, and not to fewer steps than are done."
    )
    unit: ClassVar[str] = "steps"
    minimum: ClassVar[float | None] = 0

    def __init__(self, schedule: Schedule | str) -> None:
        super().__init__()
        self._found = schedule
        self._now = 0

    def why_unavailable(self) -> str | None:
        """Return why it can not be changed in this run; None: it can."""
        return self._found if isinstance(self._found, str) else None

    def get(self) -> Values:
        """Return the warm-up in force."""
        return {EVERY_GROUP: self._value(self._schedule.warmup)}

    def put(self, values: Mapping[str, Value]) -> None:
        """Re-plan the schedule, and write the rates of the next step."""
        self.resume(values)
        self._schedule.steering.replan(self._now)

    def resume(self, values: Mapping[str, Value]) -> None:
        """Re-plan the schedule under the rates that the framework has loaded."""
        self._schedule.put_warmup(self._steps(float(values[EVERY_GROUP])))

    def capture(self) -> object:
        """Return the functions and everything that lies over them."""
        return list(self._schedule.shapes), self._schedule.steering.snapshot()

    def restore(self, captured: Any) -> None:
        """Put back the functions and what lies over them."""
        shapes, snapshot = captured
        self._schedule.shapes[:] = shapes
        self._schedule.steering.restore(snapshot)

    def stored(self, group: str, value: Value) -> Value:
        """Return what whole steps leave of it."""
        return self._value(self._steps(float(value)))

    def apply(self, change: Change, boundary: Boundary) -> Applied:
        """Make the change and read it back.

        Raises:
            Refused: It was not made and nothing changed; with the reason.
        """
        self._now = boundary.global_step
        return super().apply(change, boundary)

    def verify(self, applied: Applied, used: Reading, boundary: Boundary) -> str | None:
        """Say whether the step after a change used it, and the schedule went on from it."""
        return super().verify(applied, used, boundary) or self._schedule.steering.deviation(())

    def refuse(self, values: Mapping[str, Value], boundary: Boundary) -> None:
        """Refuse a change that comes too late, or where it would not be seen.

        Raises:
            Refused: With the reason and the way out.
        """
        schedule = self._schedule
        new, old, done = self._steps(float(values[EVERY_GROUP])), schedule.warmup, schedule.done
        way_out = "to raise the learning rate slowly from here, follow a schedule with a warm-up"
        if done >= old:
            self._refused(
                "WARMUP_OVER",
                f"the warm-up of {old} steps is over, as {done} are done: another one would make "
                f"the rate jump; {way_out}",
            )
        if new < done:
            self._refused(
                "OUT_OF_BOUNDS",
                f"{done} steps of the warm-up are done, and it can not become {new} any more; "
                f"allowed: at least {done}, which ends it here",
            )
        if new >= schedule.length:
            self._refused(
                "OUT_OF_BOUNDS",
                f"the schedule was built for {schedule.length} steps, and a warm-up of {new} "
                f"would not end within it; allowed: at most {schedule.length - 1}",
            )
        if schedule.stretched:
            self._refused(
                "SCHEDULE_STRETCHED",
                "a change of the batch size has stretched the schedule over another number of "
                f"steps, so that its warm-up no longer is one of whole steps; {way_out}",
            )
        if any(state.override.schedule is not None for state in schedule.steering.states()):
            self._refused(
                "SCHEDULE_REPLACED",
                "another schedule was put in the place of the run's own, whose warm-up nobody "
                "would see; release learning_rate first, or follow a new schedule with a warm-up",
            )
        if schedule.steering.changed_at == boundary.global_step:
            self._refused(
                "LEARNING_RATE_CHANGED",
                "the learning rate was changed for the very same step, and re-planning the "
                f"schedule would change it again; put {self.name} before learning_rate in the "
                "update, or send it a step later",
            )

    def _refused(self, reason: str, message: str) -> None:
        raise Refused(reason, message, value_in_force=self.get()[EVERY_GROUP])

    @property
    def _schedule(self) -> Schedule:
        assert isinstance(self._found, Schedule)
        return self._found

    def _steps(self, value: float) -> int:
        return int(value)

    def _value(self, steps: int) -> Value:
        return steps


class WarmupRatio(WarmupSteps):
    """The warm-up as a share of the steps that the schedule was built for."""

    name: ClassVar[str] = "warmup_ratio"
    affects: ClassVar[frozenset[str]] = frozenset({"warmup_steps"})
    kind: ClassVar[Kind] = Kind.FLOAT
    description: ClassVar[str] = (
        "The warm-up as a share of the schedule's steps, rounded up to whole steps; the same as "
        "warmup_steps otherwise."
    )
    unit: ClassVar[str] = ""
    maximum: ClassVar[float | None] = 1.0
    maximum_exclusive: ClassVar[bool] = True

    def _steps(self, value: float) -> int:
        return steps_of(value, self._schedule.length)

    def _value(self, steps: int) -> Value:
        return ratio_of(steps, self._schedule.length)


def steps_of(ratio: float, length: int) -> int:
    """Return the steps of a warm-up that is a share of a schedule, as transformers counts them."""
    return math.ceil(length * ratio)


def ratio_of(steps: int, length: int) -> float:
    """Return the share of a schedule that comes to exactly this many steps of warm-up."""
    ratio = steps / length
    while steps_of(ratio, length) > steps:
        ratio = math.nextafter(ratio, 0.0)
    return ratio


def find(run: Run) -> Iterator[WarmupSteps]:
    """Return the warm-up of a transformers run."""
    if run.lr_scheduler is None or run.learning_rate is None or run.args is None:
        return
    if hasattr(run.args, "get_warmup_steps"):
        found = _schedule(run)
        yield WarmupSteps(found)
        yield WarmupRatio(found)


def _schedule(run: Run) -> Schedule | str:
    """Return the schedule to re-plan, or why that is not possible."""
    steering = run.learning_rate.steering
    if steering is None:
        return str(run.learning_rate.spec().unavailable_reason)
    scheduler = unwrap_scheduler(run.lr_scheduler)
    kind = type(scheduler).__name__
    shapes = scheduler.lr_lambdas if sinks_scales(scheduler) else []
    first = original_shape(shapes[0]) if shapes else None
    if not isinstance(first, functools.partial) or "num_warmup_steps" not in first.keywords:
        return f"this schedule ({kind}) has no warm-up that transformers has built"
    keywords = first.keywords
    if not keywords["num_warmup_steps"]:
        return (
            "the schedule began without a warm-up, and one that came later would make the rate "
            "jump; to raise the learning rate slowly, follow a schedule with a warm-up"
        )
    length = keywords.get("num_training_steps")
    if length is None and "num_stable_steps" in keywords:
        length = sum(keywords[f"num_{part}_steps"] for part in ("warmup", "stable", "decay"))
    if length is None:
        length = run.state.max_steps
    rebuild = functools.partial(_rebuilt, run.args, unwrap_optimizer(run.optimizer), length)
    try:
        again = rebuild(keywords["num_warmup_steps"])
    except Exception as error:  # noqa: BLE001 - whoever built it did so with other arguments
        return f"the schedule can not be built again from the run's arguments: {error}"
    if any(
        not isinstance(shape, functools.partial)
        or shape.func is not again.func
        or shape.keywords != again.keywords
        for shape in map(original_shape, shapes)
    ):
        return "the schedule is not the one that the run's arguments describe"
    return Schedule(scheduler, steering, rebuild, length)


def _rebuilt(args: Any, optimizer: Any, length: int, warmup: int) -> Shape:
    """Return the function that transformers builds for the run's arguments and this warm-up."""
    # Whoever has training arguments has transformers, and has imported it.
    from transformers import get_scheduler

    # Some schedules take the ratio of a least rate to this default.
    stand_in = torch.optim.SGD([torch.zeros(1)], lr=optimizer.defaults["lr"])
    scheduler: Any = get_scheduler(
        args.lr_scheduler_type,
        stand_in,
        num_warmup_steps=warmup,
        num_training_steps=length,
        scheduler_specific_kwargs=args.lr_scheduler_kwargs,
    )
    shape: Shape = scheduler.lr_lambdas[0]
    return shape
