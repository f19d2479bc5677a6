"""A steered run as a file: what was changed, and at which optimizer step.

``midcourse history JOB --export run.yaml`` writes one; it is made to be read and edited::

    version: 1
    job: my-run
    method: sft
    updates:
      - step: 120
        revision: 3
        author: ops
        reason: loss is flat
        changes:
          - parameter: learning_rate
            set: 1.0e-05

``step`` is the first optimizer step, counted from 1, that uses the change. The order of the updates
in the file matters only among those of one step that have no revision.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from midcourse.control.v1 import update_pb2
from trainer_agent.parameters import (
    Change,
    Coupling,
    Multiply,
    Ramp,
    Release,
    Schedule,
    Set,
    SetMode,
    Shape,
    Value,
)
from trainer_agent.steering import convert
from trainer_agent.training.conform import Conformer
from trainer_agent.training.document import ConfigurationError, Problem, read

FIRST_STEP = 2
"""The earliest step that a change can be for: step 1 uses what the training script sets."""

_OPERATIONS = ("set", "multiply", "ramp", "schedule", "release")


@dataclass(frozen=True, kw_only=True, slots=True)
class RampEntry:
    """A straight line to a value."""

    value: int | float
    """The value at its end, in the parameter's unit."""
    steps: int
    """Its length in optimizer steps."""

    def __post_init__(self) -> None:
        _at_least("steps", self.steps, 1)


@dataclass(frozen=True, kw_only=True, slots=True)
class ScheduleEntry:
    """A new schedule."""

    shape: Shape
    """The curve after the warm-up."""
    peak: float | None = None
    """The value after the warm-up; None: the value in force."""
    warmup_steps: int = 0
    """Optimizer steps of the warm-up."""
    floor: float = 0.0
    """The value at its end."""
    steps: int | None = None
    """Its length in optimizer steps; None: all that remain."""

    def __post_init__(self) -> None:
        _at_least("warmup_steps", self.warmup_steps, 0)
        _at_least("steps", self.steps, 1)


@dataclass(frozen=True, kw_only=True, slots=True)
class ChangeEntry:
    """A change of one parameter; of the operations exactly one is there."""

    parameter: str
    set: bool | int | float | str | None = None
    multiply: float | None = None
    ramp: RampEntry | None = None
    schedule: ScheduleEntry | None = None
    release: bool = False
    mode: Literal["peak", "hold"] | None = None
    """For ``set``: what becomes of the schedule; None: it goes on, scaled."""
    hold_steps: int | None = None
    """For mode ``hold``: for how many optimizer steps; None: until released."""
    group: str | None = None
    """One parameter group; None: all."""
    coupling: Literal["linear", "sqrt"] | None = None
    """For a batch size: how the learning rate follows; None: it does not."""

    def __post_init__(self) -> None:
        values = {name: getattr(self, name) for name in _OPERATIONS}
        given = [
            name
            for name, value in values.items()
            if value is not None and (name != "release" or value)
        ]
        if len(given) != 1:
            raise ValueError(
                f"a change has exactly one of {', '.join(_OPERATIONS)}; got "
                f"{' and '.join(given) or 'none of them'}"
            )
        if self.mode is not None and "set" not in given:
            raise ValueError(f"mode goes with set, got it with {given[0]}; leave it out")
        if self.hold_steps is not None and self.mode != "hold":
            raise ValueError("hold_steps goes with mode: hold; leave it out or add that")
        if self.coupling is not None and given[0] not in {"set", "multiply"}:
            raise ValueError(f"coupling goes with set or multiply, got it with {given[0]}")
        _at_least("hold_steps", self.hold_steps, 1)

    def change(self) -> Change:
        """Return it as the live parameters understand it."""
        name, group = self.parameter, self.group
        coupling = Coupling(self.coupling or Coupling.NONE)
        if self.multiply is not None:
            return Multiply(name, self.multiply, group=group, coupling=coupling)
        if self.ramp is not None:
            return Ramp(name, self.ramp.value, self.ramp.steps, group=group)
        if self.schedule is not None:
            plan = self.schedule
            return Schedule(
                name, plan.shape, plan.peak, plan.warmup_steps, plan.floor, plan.steps, group
            )
        if self.release:
            return Release(name, group=group)
        value: Value | None = self.set
        assert value is not None
        mode = SetMode(self.mode or SetMode.DEFAULT)
        return Set(name, value, mode, self.hold_steps, group, coupling)


@dataclass(frozen=True, kw_only=True, slots=True)
class UpdateEntry:
    """What was done at one step boundary."""

    step: int
    """First optimizer step, counted from 1, that uses it."""
    revision: int = 0
    """The update's number in the job that it is from; 0: there is none."""
    author: str = ""
    reason: str = ""
    changes: list[ChangeEntry] = field(default_factory=list)
    action: Literal["evaluate", "save_checkpoint", "stop"] | None = None
    """What is done besides; None: nothing."""

    def __post_init__(self) -> None:
        if self.step < FIRST_STEP:
            raise ValueError(
                f"step must be at least {FIRST_STEP}, got {self.step}: the first step uses what "
                "the training script sets"
            )
        _at_least("revision", self.revision, 0)
        if not self.changes and self.action is None:
            raise ValueError("an update needs changes, an action, or both; got neither")

    def update(self) -> update_pb2.Update:
        """Return it as the control plane would deliver it: for its step, and for no other."""
        spec = update_pb2.UpdateSpec(
            changes=[convert.change_to_proto(each.change()) for each in self.changes],
            apply_at=update_pb2.ApplyAt(step=self.step, max_step=self.step),
            reason=self.reason,
            # The guard rails let it pass when it was made, or the file's author wants it.
            force=True,
        )
        if self.action is not None:
            getattr(spec.action, self.action).SetInParent()
        return update_pb2.Update(
            revision=self.revision,
            spec=spec,
            author=self.author,
            request_id=f"replay-{self.revision}",
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """The whole file."""

    version: Literal[1]
    job: str = ""
    """The job that was steered; empty: none, the file was written by hand."""
    method: str = ""
    """Its training method; empty: unknown."""
    updates: list[UpdateEntry] = field(default_factory=list)
    """In the order of their steps; every one has a revision."""


def load(path: str | os.PathLike[str]) -> Recipe:
    """Read a file.

    Raises:
        OSError: It can not be read.
        ValueError: It is not as it has to be; every line that is wrong is named.
    """
    try:
        return parse(Path(path).read_text(encoding="utf-8"), os.fspath(path))
    except ConfigurationError as error:
        raise ValueError(f"this can not be replayed:\n{error}") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{os.fspath(path)} can not be replayed: it is no UTF-8 text") from error


def parse(text: str, source: str) -> Recipe:
    """Read a file's text.

    Args:
        text: YAML or JSON.
        source: Its name, for what is said about it.

    Raises:
        ConfigurationError: It is not as it has to be; with everything that was found.
    """
    conformer = Conformer()
    recipe = conformer.section(read(text, source), Recipe)
    problems = [*conformer.problems]
    if recipe is not None:
        problems += _revision_problems(recipe.updates, conformer.places, source)
    if recipe is None or problems:
        raise ConfigurationError(problems)
    return dataclasses.replace(recipe, updates=_in_order(recipe.updates))


def _in_order(updates: Sequence[UpdateEntry]) -> list[UpdateEntry]:
    ordered = sorted(updates, key=lambda each: (each.step, each.revision))
    return [
        each if each.revision else dataclasses.replace(each, revision=number)
        for number, each in enumerate(ordered, 1)
    ]


def _revision_problems(
    updates: Sequence[UpdateEntry], places: dict[str, str], source: str
) -> Iterator[Problem]:
    """Yield where revisions are missing or given twice: they tell updates apart on a resume."""
    first: dict[int, int] = {}
    some = any(each.revision for each in updates)
    for index, each in enumerate(updates):
        if not some:
            return
        key = f"updates[{index}]"
        if not each.revision:
            message = "it has no revision and other updates have: give all of them one, or none"
        elif first.setdefault(each.revision, index) != index:
            message = (
                f"its revision {each.revision} is that of updates[{first[each.revision]}] too; "
                f"give each its own, such as {max(other.revision for other in updates) + 1}"
            )
        else:
            continue
        yield Problem(places.get(f"{key}.revision", places.get(key, source)), key, message)


def _at_least(name: str, value: int | None, least: int) -> None:
    if value is not None and value < least:
        raise ValueError(f"{name} must be at least {least}, got {value}")
