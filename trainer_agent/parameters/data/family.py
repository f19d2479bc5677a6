"""Accumulation and batch sizes as live parameters.

- ``gradient_accumulation_steps``: micro-batches of an update. Every sample of an epoch is still
  used once, no update is short but the epoch's last, and losses are scaled by what an update has.
- ``global_batch_size``: samples of an update over all ranks; the same, said in another way.
- ``per_device_train_batch_size``: samples of a micro-batch; with a new loader from the next epoch
  on.

A run of so many epochs (``max_steps`` not set) has more or fewer steps afterwards, and what remains
of a schedule that was built for its length is spread over them. A run of so many steps keeps its
steps, over more or fewer epochs.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Final

from trainer_agent.parameters.base import (
    EVERY_GROUP,
    Applied,
    Boundary,
    BoundaryKind,
    Json,
    Kind,
    Reading,
    Refused,
)
from trainer_agent.parameters.changes import Change, Multiply, Release, Set, Value
from trainer_agent.parameters.data import chunking
from trainer_agent.parameters.data.loop import flow_of
from trainer_agent.parameters.data.saved import HOLDER, Sizes
from trainer_agent.parameters.value import ValueParameter, Values

if TYPE_CHECKING:
    from trainer_agent.parameters.data.flow import DataFlow
    from trainer_agent.run import Run

_VERSION: Final = 1
_GLOBAL: Final = "global_batch_size"
# How far around a value that is refused others are looked for.
_NEIGHBOURS: Final = 1_000


def find(run: Run) -> Iterable[_DataParameter]:
    """Return the parameters of a run of transformers, whether or not they are available in it."""
    if run.args is None or not hasattr(run.args, "gradient_accumulation_steps"):
        return ()
    flow = None if run.trainer is None else flow_of(run.trainer)
    return (GradientAccumulationSteps(flow), GlobalBatchSize(flow), PerDeviceBatchSize(flow))


class _DataParameter(ValueParameter):
    """One of the numbers that decide how many samples an update has.

    Args:
        flow: What owns them; None: the trainer was not made ready before it began to train.
    """

    kind: ClassVar[Kind] = Kind.INT
    minimum: ClassVar[float | None] = 1
    couples: ClassVar[bool] = True

    def __init__(self, flow: DataFlow | None) -> None:
        super().__init__()
        self._flow = flow
        if flow is not None and not self.why_unavailable():
            # What a release goes back to, whichever of the parameters moved it.
            self._original = {EVERY_GROUP: self.value_of(flow.script_sizes)}

    def value_of(self, sizes: Sizes) -> int:
        """Return the value that these sizes come to."""
        raise NotImplementedError

    def write(self, flow: DataFlow, value: int) -> None:
        """Make it the value in force."""
        raise NotImplementedError

    @property
    def flow(self) -> DataFlow:
        """What owns the value.

        Raises:
            Refused: Nothing does.
        """
        if self._flow is None:
            raise Refused("UNAVAILABLE", str(self.why_unavailable()))
        return self._flow

    def get(self) -> Values:
        """Return the value in force."""
        return {EVERY_GROUP: self.value_of(self.flow.sizes)}

    def put(self, values: Mapping[str, Value]) -> None:
        """Make a value the one in force."""
        self.write(self.flow, int(values[EVERY_GROUP]))

    def why_unavailable(self) -> str | None:
        """Return why it can not be changed in this run; None: it can."""
        if self._flow is None:
            return (
                "what plans the data is in the trainer: attach the trainer, before it trains, with "
                "trainer_agent.attach"
            )
        return self._flow.why_unavailable

    def target(self, change: Change) -> int | None:
        """Return the value that a change asks for; None: none that could be."""
        match change:
            case Set(value=int() | float() as value) if not isinstance(value, bool):
                wanted: float = value
            case Multiply(factor=factor):
                wanted = self.value_of(self.flow.sizes) * factor
            case Release():
                wanted = self.value_of(self.flow.script_sizes)
            case _:
                return None
        return int(wanted) if math.isfinite(wanted) and wanted == int(wanted) >= 1 else None

    def capture(self) -> object:
        """Return everything that a change can touch."""
        return self.flow.snapshot()

    def restore(self, captured: Any) -> None:
        """Put it back."""
        self.flow.restore(captured)

    def apply(self, change: Change, boundary: Boundary) -> Applied:
        """Make the change and read it back.

        Raises:
            Refused: It was not made and nothing changed; with the reason.
        """
        original = self._original
        try:
            return super().apply(change, boundary)
        finally:
            self._original = original

    def verify(self, applied: Applied, used: Reading, boundary: Boundary) -> str | None:
        """Say whether the update after a change took what it was to take."""
        return super().verify(applied, used, boundary) or self.flow.deviation()

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs: nothing, as one of the family saves it for all."""
        return {}

    def load_state_dict(self, state: Json) -> None:
        """Go on from a saved state."""


class GradientAccumulationSteps(_DataParameter):
    """Micro-batches of an update."""

    name: ClassVar[str] = HOLDER
    description: ClassVar[str] = (
        "Micro-batches that each optimizer step takes. A change takes effect where the "
        "micro-batches used in the epoch are a multiple of the new value, at the latest at the end "
        "of the epoch; one that can not take effect before the run ends is refused."
    )
    unit: ClassVar[str] = "micro-batches"
    boundary: ClassVar[BoundaryKind] = BoundaryKind.ACCUMULATION
    rests_on: ClassVar[frozenset[str]] = frozenset({HOLDER, "per_device_train_batch_size"})
    affects: ClassVar[frozenset[str]] = frozenset({_GLOBAL})

    def value_of(self, sizes: Sizes) -> int:
        """Return the accumulation."""
        return sizes.accumulation

    def write(self, flow: DataFlow, value: int) -> None:
        """Let updates take so many micro-batches."""
        flow.set_accumulation(value)

    def why_unavailable(self) -> str | None:
        """Return why it can not be changed in this run; None: it can."""
        why = super().why_unavailable()
        return why or (None if self._flow is None else self._flow.why_no_accumulation)

    def opens(self, change: Change, boundary: Boundary) -> bool:
        """Say whether the next update may begin with the accumulation that is asked for."""
        accumulation = self.accumulation(change)
        return self._flow is None or accumulation is None or self._flow.opens(accumulation)

    def accumulation(self, change: Change) -> int | None:
        """Return the accumulation that a change comes to; None: none that could be."""
        return self.target(change) if self._flow is not None else None

    def refuse(self, values: Mapping[str, Value], boundary: Boundary) -> None:
        """Refuse what can not take effect any more.

        Raises:
            Refused: With the reason.
        """
        _refuse_accumulation(self.flow, int(values[EVERY_GROUP]))

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs, of all parameters of the family."""
        state = None if self._flow is None else self._flow.state()
        return {} if state is None else {"version": _VERSION, "flow": state}

    def load_state_dict(self, state: Json) -> None:
        """Go on from a saved state. The place in the data was restored before the loop began.

        Raises:
            ValueError: The state does not fit this run; nothing changed.
        """
        if not state:
            return
        if state.get("version") != _VERSION:
            raise ValueError(
                f"the saved state of {self.name} has version {state.get('version')!r}, and this "
                f"is version {_VERSION}"
            )
        if self._flow is None or self._flow.why_unavailable:
            why = ValueParameter.why_unavailable(self) or self.why_unavailable()
            raise ValueError(f"{self.name} was changed before, and can not be in this run: {why}")
        self._flow.resume_schedule()


class GlobalBatchSize(GradientAccumulationSteps):
    """Samples of an update, over all ranks."""

    name: ClassVar[str] = _GLOBAL
    affects: ClassVar[frozenset[str]] = frozenset({HOLDER})
    description: ClassVar[str] = (
        "Samples that each optimizer step takes, over all devices and ranks. Realised by "
        "gradient_accumulation_steps, and takes effect where that does; a value that is no "
        "multiple of the samples of a micro-batch is refused."
    )
    unit: ClassVar[str] = "samples"

    def value_of(self, sizes: Sizes) -> int:
        """Return the samples of an update."""
        flow = self.flow
        here = flow.sizes.train_batch
        return flow.samples_of_micro_batch * sizes.train_batch // here * sizes.accumulation

    def write(self, flow: DataFlow, value: int) -> None:
        """Let updates take as many micro-batches as come to so many samples."""
        flow.set_accumulation(self._divided(value))

    def why_unavailable(self) -> str | None:
        """Return why it can not be changed in this run; None: it can."""
        why = super().why_unavailable()
        if why is None and self.flow.trainer.accelerator.split_batches:
            return "split_batches makes one batch serve all ranks; set gradient_accumulation_steps"
        return why

    def accumulation(self, change: Change) -> int | None:
        """Return the accumulation that a change comes to; None: none that could be."""
        value = super().accumulation(change)
        if value is None or value % self.flow.samples_of_micro_batch:
            return None
        return value // self.flow.samples_of_micro_batch

    def refuse(self, values: Mapping[str, Value], boundary: Boundary) -> None:
        """Refuse what no accumulation comes to, or what can not take effect any more.

        Raises:
            Refused: With the reason.
        """
        value = int(values[EVERY_GROUP])
        _refuse_accumulation(self.flow, self._divided(value))

    def state_dict(self) -> dict[str, Any]:
        """Return nothing: the accumulation's state has it."""
        return {}

    def load_state_dict(self, state: Json) -> None:
        """Go on from a saved state."""

    def _divided(self, value: int) -> int:
        unit = self.flow.samples_of_micro_batch
        if value % unit:
            possible = " or ".join(map(str, chunking.nearest_multiples(value, unit)))
            raise Refused(
                "NOT_DIVISIBLE",
                f"{self.name} must be a multiple of {unit}, the samples of a micro-batch over all "
                f"ranks; got {value}; the nearest possible: {possible}",
            )
        return value // unit


class PerDeviceBatchSize(_DataParameter):
    """Samples of a micro-batch on one device."""

    name: ClassVar[str] = "per_device_train_batch_size"
    affects: ClassVar[frozenset[str]] = frozenset({_GLOBAL})
    description: ClassVar[str] = (
        "Samples that each device takes at a time. A change takes effect with the next epoch, "
        "which begins with a new data loader."
    )
    unit: ClassVar[str] = "samples"
    boundary: ClassVar[BoundaryKind] = BoundaryKind.EPOCH

    def value_of(self, sizes: Sizes) -> int:
        """Return the samples of a micro-batch."""
        return sizes.per_device

    def write(self, flow: DataFlow, value: int) -> None:
        """Let the epochs to come use micro-batches of so many samples."""
        flow.set_batch_size(value)

    def why_unavailable(self) -> str | None:
        """Return why it can not be changed in this run; None: it can."""
        why = super().why_unavailable()
        if why is not None or self._flow is None:
            return why
        if self._flow.plan is not None and self._flow.position.length is None:
            return "the data has no known length, so that nobody knows where an epoch ends"
        return self._flow.why_no_batch_size

    def opens(self, change: Change, boundary: Boundary) -> bool:
        """Say whether an epoch ends here."""
        return self._flow is None or self._flow.ends_epoch


def _refuse_accumulation(flow: DataFlow, accumulation: int) -> None:
    """Refuse an accumulation that can not begin before the run ends.

    Raises:
        Refused: With what can.
    """
    here, state = flow.position, flow.trainer.state
    left = state.max_steps - state.global_step
    if here.length is None:
        horizon, to_come = flow.steps_in_epoch, left - flow.in_hand
        if horizon % accumulation and here.consumed + to_come * accumulation > horizon:
            raise Refused(
                "NOT_ALIGNED",
                f"the data has no known length, and transformers ends its plan after {horizon} "
                f"micro-batches, which is no multiple of {accumulation}; choose a divisor of it",
            )
    wait = flow.updates_until_open(accumulation)
    if wait < left or accumulation == flow.sizes.accumulation:
        return
    around = sorted(
        range(max(accumulation - _NEIGHBOURS, 1), accumulation + _NEIGHBOURS),
        key=lambda each: abs(each - accumulation),
    )
    possible = (each for each in around if flow.updates_until_open(each) < left)
    nearest = next(possible, 1)
    raise Refused(
        "NEVER_ALIGNED",
        f"updates of {accumulation} micro-batches can begin after {wait} more updates, where the "
        f"micro-batches used in the epoch are a multiple of it or the epoch ends, and the run has "
        f"{left} left; nearest accumulation that can: {nearest}",
    )
