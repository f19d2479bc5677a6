"""How often a transformers trainer logs, evaluates and saves, and when it stops.

Its arguments are only where these numbers come from: ``DefaultFlowCallback`` reads them from the
trainer's state, at each step's end and before any callback of ours, so that a change counts from
the next step on. A checkpoint holds them, except ``max_steps``, which transformers takes from the
arguments again and this package from its own state.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Final

from trainer_agent.parameters.base import EVERY_GROUP, Applied, Boundary, Kind, Refused
from trainer_agent.parameters.changes import Change, Release
from trainer_agent.parameters.data.chunking import Position, updates_left
from trainer_agent.parameters.data.loop import flow_of
from trainer_agent.parameters.value import ValueParameter, Values

if TYPE_CHECKING:
    from trainer_agent.parameters.changes import Value
    from trainer_agent.run import Run

_NEITHER: Final = {
    "no": "at no step",
    "epoch": "at the end of each epoch",
    "best": "whenever the metric is the best so far",
}


class _OfTheState(ValueParameter):
    """A whole number in the trainer's state.

    Args:
        run: What the run shows.
    """

    kind: ClassVar[Kind] = Kind.INT
    unit: ClassVar[str] = "steps"
    minimum: ClassVar[float | None] = 1

    def __init__(self, run: Run) -> None:
        super().__init__()
        self._trainer = run.trainer
        self._args = run.args
        self._state = run.state

    def why_unavailable(self) -> str | None:
        """Return why it can not be changed in this run; None: it can."""
        if self._trainer is None:
            return None
        names = {
            base.__name__
            for callback in self._trainer.callback_handler.callbacks
            for base in type(callback).__mro__
        }
        if "DefaultFlowCallback" in names:
            return None
        return (
            "the trainer's DefaultFlowCallback, which reads it, is not among its callbacks; what "
            "stands in for it may read another value"
        )

    def get(self) -> Values:
        """Return the number in force."""
        return {EVERY_GROUP: getattr(self._state, self.name)}

    def put(self, values: Mapping[str, Value]) -> None:
        """Write the number."""
        setattr(self._state, self.name, values[EVERY_GROUP])


class _Interval(_OfTheState):
    """The number of optimizer steps from one event to the next."""

    strategy: ClassVar[str]
    """The argument that says what the event goes by."""
    does: ClassVar[str]

    def why_unavailable(self) -> str | None:
        """Return why it can not be changed in this run; None: it can."""
        strategy = getattr(self._args, self.strategy)
        strategy = getattr(strategy, "value", strategy)
        if strategy != "steps":
            return (
                f"{self.strategy} is {strategy!r}: the trainer {self.does} "
                f"{_NEITHER.get(strategy, 'by another rule')}, and goes by {self.name} only where "
                "it is 'steps'"
            )
        return super().why_unavailable()


class LoggingSteps(_Interval):
    """Steps between logs."""

    name: ClassVar[str] = "logging_steps"
    description: ClassVar[str] = (
        "The trainer logs at every step whose number is a multiple of this. What it logs is the "
        "mean since the last log."
    )
    strategy: ClassVar[str] = "logging_strategy"
    does: ClassVar[str] = "logs"


class _BestModel(_Interval):
    """An interval of which another one must be a multiple where the best model is kept."""

    rests_on: ClassVar[frozenset[str]] = frozenset({"eval_steps", "save_steps"})

    def refuse(self, values: Mapping[str, Value], boundary: Boundary) -> None:
        """Refuse to save where nothing was evaluated, if the best model is to be kept.

        Raises:
            Refused: With the rule, which is that of ``TrainingArguments``.
        """
        if not getattr(self._args, "load_best_model_at_end", False):
            return
        if any(getattr(self._args, name) != "steps" for name in ("eval_strategy", "save_strategy")):
            return
        planned = {
            "eval_steps": self._state.eval_steps,
            "save_steps": self._state.save_steps,
            self.name: int(values[EVERY_GROUP]),
        }
        if planned["save_steps"] % planned["eval_steps"] != 0:
            raise Refused(
                "INVALID_VALUE",
                "load_best_model_at_end needs save_steps to be a multiple of eval_steps, and they "
                f"would be {planned['save_steps']} and {planned['eval_steps']}; change both in one "
                "update, in an order that keeps to this",
            )


class EvalSteps(_BestModel):
    """Steps between evaluations."""

    name: ClassVar[str] = "eval_steps"
    description: ClassVar[str] = (
        "The trainer evaluates at every step whose number is a multiple of this."
    )
    strategy: ClassVar[str] = "eval_strategy"
    does: ClassVar[str] = "evaluates"


class SaveSteps(_BestModel):
    """Steps between checkpoints."""

    name: ClassVar[str] = "save_steps"
    description: ClassVar[str] = (
        "The trainer saves a checkpoint at every step whose number is a multiple of this."
    )
    strategy: ClassVar[str] = "save_strategy"
    does: ClassVar[str] = "saves"


class MaxSteps(_OfTheState):
    """The number of the last optimizer step."""

    name: ClassVar[str] = "max_steps"
    description: ClassVar[str] = (
        "Optimizer steps in the whole run. Neither stretches nor cuts the learning rate's "
        "schedule: for that, follow a new schedule of so many steps. Further passes over the data "
        "follow where the planned ones do not suffice. What is set stands, whatever becomes of the "
        "batch size, until it is released."
    )

    def __init__(self, run: Run) -> None:
        super().__init__(run)
        self._planned_at_first: int = run.state.max_steps
        flow = None if run.trainer is None else flow_of(run.trainer)
        self._flow = flow if flow is not None and flow.why_unavailable is None else None

    def put(self, values: Mapping[str, Value]) -> None:
        """Write the number, which no plan goes over from now on."""
        super().put(values)
        if self._flow is not None:
            self._flow.steps_set = True

    def capture(self) -> object:
        """Return everything that a change can touch."""
        return super().capture() if self._flow is None else self._flow.snapshot()

    def restore(self, captured: Any) -> None:
        """Put it back."""
        if self._flow is None:
            super().restore(captured)
        else:
            self._flow.restore(captured)

    def check(self, change: Change, boundary: Boundary) -> None:
        """Say whether ``apply`` would make this change here.

        Raises:
            Refused: It would not; with the reason.
        """
        self._note_plan()
        super().check(change, boundary)

    def apply(self, change: Change, boundary: Boundary) -> Applied:
        """Make the change and read it back.

        Raises:
            Refused: It was not made and nothing changed; with the reason.
        """
        self._note_plan()
        applied = super().apply(change, boundary)
        if isinstance(change, Release) and self._flow is not None:
            self._flow.follow_plan()
        return applied

    def _note_plan(self) -> None:
        """Have a release lead to what is planned by now: the batch size may have changed since."""
        if self._original is not None and self._flow is not None:
            self._original = {EVERY_GROUP: self._flow.max_steps}

    def refuse(self, values: Mapping[str, Value], boundary: Boundary) -> None:
        """Refuse an end that is past, or beyond what the training loop goes over.

        Raises:
            Refused: With the reason.
        """
        value = int(values[EVERY_GROUP])
        if value < boundary.next_step:
            raise Refused(
                "OUT_OF_BOUNDS",
                f"max_steps would become {value}, and step {boundary.next_step} is next: a step "
                f"that has begun is finished, so that the least is {boundary.next_step}; to end "
                "at once, stop the run",
            )
        most, why = self._most(boundary)
        if value > most:
            raise Refused(
                "OUT_OF_BOUNDS",
                f"max_steps would become {value}, and this run can make {most} steps at most: "
                f"{why}",
            )

    def _most(self, boundary: Boundary) -> tuple[int, str]:
        """Return the number of steps that the training loop can make at most, and why."""
        planned: int = max(self._planned_at_first, self._state.max_steps)
        if self._trainer is None:
            return planned, (
                "how much data there is is not known; attach the trainer rather than giving it "
                "the callback, to allow for more"
            )
        loader = self._trainer.callback_handler.train_dataloader
        try:
            length = len(loader)
        except TypeError:
            return planned, (
                "its data has no length, and would be gone over from the beginning after as many "
                "steps as were planned"
            )
        if self._flow is not None:
            return sys.maxsize, ""  # further passes over the data follow the planned ones
        epochs = self._state.num_train_epochs
        progress = boundary.epoch or 0.0
        place = Position(int(progress), round(progress % 1 * length), length).normalised(length)
        left = 0
        if place.epoch < epochs:
            left = updates_left(place, epochs, self._args.gradient_accumulation_steps)
        most = max(boundary.global_step + left, self._state.max_steps)
        return most, (
            f"its loop goes over the data {epochs} "
            f"{'time' if epochs == 1 else 'times'}, which was settled when it began; attach the "
            "trainer before it trains to allow for more"
        )


def find(run: Run) -> Iterator[ValueParameter]:
    """Return what a trainer's state says about its cadence."""
    if run.state is None or run.args is None:
        return
    for each in (LoggingSteps, EvalSteps, SaveSteps, MaxSteps):
        if hasattr(run.state, each.name):
            yield each(run)
