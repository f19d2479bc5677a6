"""The contract of a live parameter: what it declares, what it does when asked, what it answers.

What may be asked is in ``changes``.

A live parameter is a value inside a running training process that can be changed between two
optimizer steps. Each family (the learning rate, weight decay, clipping, ...) is one module with a
class that fulfils :class:`LiveParameter`. The life of one change is always the same:

1. ``check`` says whether the change is possible now, and touches nothing; ``opens`` whether this
   boundary is one of the parameter's own, or it has to wait for one.
2. ``apply`` makes it, between two optimizer steps, and returns what was and what is.
3. the next optimizer step runs with it; ``read`` right after that step says what it used.
4. ``verify``, at the boundary after that step, says whether all went as promised.
5. ``tick``, at every boundary, moves values that vary with time.
6. ``undo``, before any step has run, takes the change back bit for bit.
7. ``state_dict`` rides in the checkpoint, so that a resumed run goes on as the interrupted one.

Nothing here knows a wire format or a training framework.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeAlias

if TYPE_CHECKING:
    from trainer_agent.parameters.changes import Change, Operation, Value

Json: TypeAlias = Mapping[str, Any]
"""A mapping that ``json.dumps`` can write and read back unchanged."""

EVERY_GROUP = ""
"""The group name under which a parameter without parameter groups reports its one value."""


class Kind(enum.StrEnum):
    """The type of a parameter's value."""

    FLOAT = "float"
    INT = "int"
    BOOL = "bool"
    STRING = "string"
    ENUM = "enum"


class BoundaryKind(enum.StrEnum):
    """Where in a training run a parameter can change."""

    STEP = "step"
    """Between any two optimizer steps."""
    ACCUMULATION = "accumulation"
    """Where the micro-batches used in the epoch are a multiple of those of an update to come."""
    EPOCH = "epoch"
    """Between two passes over the data."""
    GENERATION = "generation"
    """Where the samples generated ahead have been used up."""


class Boundary(NamedTuple):
    """A place between two optimizer steps.

    A change applied here is used first by optimizer step ``next_step``.
    """

    global_step: int
    """Optimizer steps completed."""
    max_steps: int | None = None
    """Optimizer steps in the whole run; None where that is not known."""
    epoch: float | None = None
    """Passes over the data completed, in fractions; None where that is not known."""

    @property
    def ends_epoch(self) -> bool:
        """Whether the step that was completed was the last of its pass over the data."""
        return self.epoch is not None and self.epoch > 0 and float(self.epoch).is_integer()

    @property
    def next_step(self) -> int:
        """The number, from 1, of the optimizer step that follows."""
        return self.global_step + 1


@dataclass(frozen=True, slots=True)
class Reading:
    """The value of a parameter, by parameter group."""

    by_group: Mapping[str, Value | None]
    """Group name (``EVERY_GROUP`` where there are no groups) to value; None: not known."""

    @property
    def value(self) -> Value | None:
        """The value to show where only one fits: the first group's."""
        return next(iter(self.by_group.values()), None)


class Refused(Exception):  # noqa: N818 - it is an answer, not a fault
    """A change was not made, and everything is as it was.

    Attributes:
        reason: An UPPER_SNAKE word for programs.
        message: For people: what was wrong, what was got, what is allowed, what to do instead.
        value_in_force: The value that stays in force; None where it is not known.
        for_now: It is for the value in force, and may be otherwise once that is another.
    """

    def __init__(
        self,
        reason: str,
        message: str,
        *,
        value_in_force: Value | None = None,
        for_now: bool = False,
    ) -> None:
        """Store the reason, the message and the value that stays in force."""
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.value_in_force = value_in_force
        self.for_now = for_now


@dataclass(frozen=True, slots=True)
class GuardRails:
    """Limits that the job's owner sets; narrower than what the parameter itself allows.

    ``force`` overrides ``max_relative_change``; nothing overrides the others.
    """

    minimum: float | None = None
    maximum: float | None = None
    max_relative_change: float | None = None
    """Largest factor, up or down, between the value in force and a new one; None: no limit."""
    frozen: bool = False
    """It must not be changed at all."""
    allowed_principals: tuple[str, ...] = ()
    """Who may change it; empty: whoever may change anything."""


@dataclass(frozen=True, slots=True)
class ParameterSpec:
    """What a parameter declares about itself."""

    name: str
    kind: Kind
    description: str
    unit: str = ""
    minimum: float | None = None
    """No value is below this; None: no bound."""
    minimum_exclusive: bool = False
    """The minimum itself is not allowed either."""
    maximum: float | None = None
    maximum_exclusive: bool = False
    choices: tuple[str, ...] = ()
    """For ``Kind.ENUM``: the values there are."""
    boundary: BoundaryKind = BoundaryKind.STEP
    current: Value | None = None
    """The value in force (the first group's where there are groups); None: not known."""
    operations: frozenset[Operation] = frozenset()
    """What may be asked now. Empty where the parameter cannot be changed in this run."""
    unavailable: Mapping[Operation, str] = field(default_factory=dict)
    """Why each operation that this family knows is not offered in this run."""
    groups: tuple[str, ...] = ()
    """The parameter groups that a change may name, in the optimizer's order."""
    guard_rails: GuardRails | None = None
    """The owner's limits; None: the control plane's defaults."""

    @property
    def unavailable_reason(self) -> str | None:
        """Why the parameter cannot be changed at all; None where something is offered."""
        if self.operations:
            return None
        return next(iter(self.unavailable.values()), "nothing about it can be changed in this run")


@dataclass(frozen=True, slots=True)
class Applied:
    """A change that was made and has not been used by a step yet."""

    change: Change
    boundary: Boundary
    old: Reading
    """What the next step would have used."""
    new: Reading
    """What the next step will use, read back after the write."""
    before: object = field(repr=False, compare=False)
    """What ``undo`` needs; only the parameter that made it can read it."""


class LiveParameter(Protocol):
    """A value inside the training process that can be changed between two optimizer steps.

    No method ever leaves a parameter half changed: either it did what it says or it raised and
    nothing moved. None blocks, starts a thread, or keeps more than a few numbers.
    """

    @property
    def name(self) -> str:
        """The name that changes use."""
        ...

    def spec(self) -> ParameterSpec:
        """Declare what can be asked now; changes nothing."""
        ...

    def check(self, change: Change, boundary: Boundary) -> None:
        """Say whether ``apply`` would make this change here; changes nothing.

        Raises:
            Refused: It would not; with the reason.
        """
        ...

    def opens(self, change: Change, boundary: Boundary) -> bool:
        """Say whether this is one of the parameter's own boundaries; changes nothing.

        Where it is not, the update waits for one that is, unless it is refused before.
        """
        ...

    def apply(self, change: Change, boundary: Boundary) -> Applied:
        """Make the change, in force from step ``boundary.next_step``, and read it back.

        Raises:
            Refused: It was not made and nothing changed; with the reason.
        """
        ...

    def undo(self, applied: Applied) -> None:
        """Take a change back bit for bit.

        To be called at the boundary where the change was made, the latest change first.
        """
        ...

    def read(self, *, synchronise: bool = False) -> Reading:
        """Return the values in force.

        Args:
            synchronise: Allow waiting for an accelerator where a value lies there. Without it such
                a value is reported only if it is known on the host, else as None.
        """
        ...

    def tick(self, boundary: Boundary) -> None:
        """Move what varies with time to its value for step ``boundary.next_step``.

        To be called at every boundary, after ``verify`` and before ``apply``. Calling it twice at
        one boundary does no harm.
        """
        ...

    def verify(self, applied: Applied, used: Reading, boundary: Boundary) -> str | None:
        """Say whether a change took effect as promised.

        To be called at the boundary that follows the first step after the change, before ``tick``
        and before any other change.

        Args:
            applied: What ``apply`` returned.
            used: What ``read(synchronise=True)`` returned right after that optimizer step, before
                any schedule went on.
            boundary: The boundary after that step.

        Returns:
            None where everything was as promised, else what was not.
        """
        ...

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs, in a form that ``json.dumps`` keeps exactly."""
        ...

    def load_state_dict(self, state: Json) -> None:
        """Go on from a saved state.

        To be called after the training framework has loaded its own checkpoint.

        Raises:
            ValueError: The state does not fit this run; nothing changed.
        """
        ...

    def detach(self) -> None:
        """Leave the value as it is and let go of whatever was followed for it.

        To be called at the end of training; nothing else may be called afterwards.
        """
        ...
