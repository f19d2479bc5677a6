"""A live parameter that is a plain value: what all families but the learning rate build on.

A family says what its parameter is called, how it is read and written, and where; all the rest,
from refusing what is out of bounds to what rides in a checkpoint, is here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Final

from trainer_agent.parameters.base import (
    EVERY_GROUP,
    Applied,
    Boundary,
    BoundaryKind,
    Json,
    Kind,
    ParameterSpec,
    Reading,
    Refused,
)
from trainer_agent.parameters.changes import (
    Change,
    Coupling,
    Multiply,
    Operation,
    Release,
    Set,
    SetMode,
    Value,
    operation_of,
)
from trainer_agent.parameters.limits import Limits
from trainer_agent.parameters.transaction import UndoError

_VERSION: Final = 1

Values = Mapping[str, Value | None]
"""Values by parameter group; ``EVERY_GROUP`` alone where there are no groups."""


class ValueParameter:
    """A value that is read and written where it lies; fulfils ``LiveParameter``.

    Subclasses set the class attributes, and implement ``get`` and ``put``; they may override what
    else there is for families.
    """

    name: ClassVar[str]
    description: ClassVar[str]
    kind: ClassVar[Kind] = Kind.FLOAT
    unit: ClassVar[str] = ""
    minimum: ClassVar[float | None] = None
    minimum_exclusive: ClassVar[bool] = False
    maximum: ClassVar[float | None] = None
    maximum_exclusive: ClassVar[bool] = False
    choices: ClassVar[tuple[str, ...]] = ()
    boundary: ClassVar[BoundaryKind] = BoundaryKind.STEP
    couples: ClassVar[bool] = False
    """Whether a change may say how the learning rate is to follow it."""
    rests_on: ClassVar[frozenset[str]] = frozenset()
    """Parameters whose change, earlier in the same update, may make possible what is not now."""
    affects: ClassVar[frozenset[str]] = frozenset()
    """Other names under which a change of it shows, as they stand for the same thing, wholly or in
    part: one that waits gives way where one of them is set in the meantime."""

    def __init__(self) -> None:
        # What the script had set, from before the first change; None: it was never changed.
        self._original: dict[str, Value | None] | None = None

    # ---- For families ----

    def get(self) -> Values:
        """Return the values in force, read where the training loop reads them."""
        raise NotImplementedError

    def put(self, values: Mapping[str, Value]) -> None:
        """Write values, of one group or of several, everywhere the training loop reads them.

        May raise in the middle: what was written is then taken back by putting the old values.
        """
        raise NotImplementedError

    def why_unavailable(self) -> str | None:
        """Return why it can not be changed in this run; None: it can."""
        return None

    def refuse(self, values: Mapping[str, Value], boundary: Boundary) -> None:
        """Refuse values that are within the bounds and impossible all the same; changes nothing.

        Also asked where a release would lead to other values than those in force.

        Raises:
            Refused: With the reason.
        """

    def targets(self, change: Change, now: Values) -> list[str]:
        """Return the groups that a change is for: the one it names, else all.

        Raises:
            Refused: There is no such group, or it has to name one.
        """
        if change.group is None:
            return list(now)
        if change.group in now:
            return [change.group]
        groups = [group for group in now if group != EVERY_GROUP]
        raise Refused(
            "UNKNOWN_GROUP",
            f"{self.name} has no parameter group {change.group!r}; "
            + (f"there are: {', '.join(groups)}" if groups else "it is one value for all of them"),
        )

    def share(self, value: Value, targets: Sequence[str], now: Values) -> dict[str, Value]:
        """Return what a value that is set for several groups comes to in each: the same."""
        return dict.fromkeys(targets, value)

    def stored(self, group: str, value: Value) -> Value:
        """Return what is left of a value where it lies, in the precision that this has."""
        return value

    def resume(self, values: Mapping[str, Value]) -> None:
        """Write the values that a checkpoint holds, after the framework has loaded its own."""
        self.put(values)

    def capture(self) -> object:
        """Return everything that ``put`` can touch, for ``restore``."""
        return dict(self.get())

    def restore(self, captured: Any) -> None:
        """Put back, to the bit, what ``capture`` returned at this boundary."""
        self.put({group: value for group, value in captured.items() if value is not None})

    def opens(self, change: Change, boundary: Boundary) -> bool:
        """Say whether this is one of the parameter's own boundaries."""
        return self.boundary is not BoundaryKind.EPOCH or boundary.ends_epoch

    # ---- The contract ----

    def spec(self) -> ParameterSpec:
        """Declare what can be asked now."""
        why = self.why_unavailable()
        offered = {Operation.SET, Operation.RELEASE}
        if self.kind in {Kind.FLOAT, Kind.INT}:
            offered.add(Operation.MULTIPLY)
        reading = self.read()
        groups = tuple(group for group in reading.by_group if group != EVERY_GROUP)
        return ParameterSpec(
            name=self.name,
            kind=self.kind,
            description=self.description,
            unit=self.unit,
            minimum=self.minimum,
            minimum_exclusive=self.minimum_exclusive,
            maximum=self.maximum,
            maximum_exclusive=self.maximum_exclusive,
            choices=self.choices,
            boundary=self.boundary,
            current=reading.value,
            operations=frozenset() if why else frozenset(offered),
            unavailable={} if why is None else dict.fromkeys(sorted(offered), why),
            groups=groups,
        )

    def check(self, change: Change, boundary: Boundary) -> None:
        """Say whether ``apply`` would make this change here.

        Raises:
            Refused: It would not; with the reason.
        """
        self._plan(change, boundary)

    def apply(self, change: Change, boundary: Boundary) -> Applied:
        """Make the change and read it back.

        Raises:
            Refused: It was not made and nothing changed; with the reason.
        """
        planned = self._plan(change, boundary)
        old = dict(self.get())
        captured = self.capture()
        try:
            self.put(planned)
            new = dict(self.get())
            # Only now it may be seen in what precision they are kept.
            kept = {group: self.stored(group, value) for group, value in planned.items()}
            # Groups that nobody named must be what they were.
            if wrong := _difference({**old, **kept}, new):
                raise Refused(
                    "READ_BACK_DIFFERS",
                    f"{self.name} was set and read back otherwise: {wrong}",
                    value_in_force=_first(old),
                )
        except Exception as error:
            try:
                self.restore(captured)
            except Exception as stuck:  # noqa: BLE001 - whatever it is, the value is not back
                error.add_note(f"taking it back failed: {stuck!r}")
                raise UndoError([change]) from error
            raise
        before = _Before(captured, self._original)
        original = self._original or old
        self._original = None if isinstance(change, Release) and new == original else original
        return Applied(change, boundary, Reading(old), Reading(new), before)

    def undo(self, applied: Applied) -> None:
        """Take a change back bit for bit.

        Raises:
            TypeError: It was not made here.
        """
        if not isinstance(applied.before, _Before):
            raise TypeError("this change was not made here")
        self.restore(applied.before.captured)
        self._original = applied.before.original

    def read(self, *, synchronise: bool = False) -> Reading:
        """Return the values in force, by group; empty where the parameter is not available."""
        return Reading({} if self.why_unavailable() else dict(self.get()))

    def tick(self, boundary: Boundary) -> None:
        """Nothing varies with time."""

    def verify(self, applied: Applied, used: Reading, boundary: Boundary) -> str | None:
        """Say whether the step after a change used it."""
        return _difference(applied.new.by_group, used.by_group)

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs; empty where nothing was ever changed."""
        if self._original is None:
            return {}
        return {"version": _VERSION, "values": dict(self.get()), "original": self._original}

    def load_state_dict(self, state: Json) -> None:
        """Go on from a saved state.

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
        if why := self.why_unavailable():
            raise ValueError(f"{self.name} was changed before, and can not be in this run: {why}")
        here = dict(self.get())
        try:
            values, original = dict(state["values"]), dict(state["original"])
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"the saved state of {self.name} is damaged: {error!r}") from error
        if here.keys() != values.keys():
            raise ValueError(
                f"the saved state of {self.name} has the parameter groups {sorted(values)}, and "
                f"this run has {sorted(here)}"
            )
        captured = self.capture()
        known = {group: value for group, value in values.items() if value is not None}
        try:
            self.resume(known)
            if wrong := _difference(known, self.get()):
                raise ValueError(f"{self.name} could not be taken over: {wrong}")
        except Exception:
            self.restore(captured)
            raise
        self._original = original

    def detach(self) -> None:
        """Nothing is followed."""

    # ---- Within ----

    def _plan(self, change: Change, boundary: Boundary) -> dict[str, Value]:
        """Return what a change comes to, by group.

        Raises:
            Refused: It can not be made; with the value that stays in force.
        """
        if change.parameter != self.name:
            raise Refused("UNKNOWN_PARAMETER", f"this is {self.name}, not {change.parameter!r}")
        if why := self.why_unavailable():
            raise Refused("UNAVAILABLE", f"{self.name} can not be changed in this run: {why}")
        now = dict(self.get())
        try:
            return self._comes_to(change, boundary, now)
        except Refused as refused:
            if refused.value_in_force is None:
                refused.value_in_force = _first(now)
            # What a factor comes to depends on what there is.
            refused.for_now = refused.for_now or (
                isinstance(change, Multiply)
                and refused.reason in {"INVALID_VALUE", "OUT_OF_BOUNDS"}
            )
            raise

    def _comes_to(self, change: Change, boundary: Boundary, now: Values) -> dict[str, Value]:
        self._check_form(change)
        targets, limits = self.targets(change, now), self._limits
        match change:
            case Set(value=value, mode=SetMode.DEFAULT):
                planned = self.share(limits.typed(value), targets, now)
            case Multiply(factor=factor):
                planned = {group: limits.scaled(now[group], factor) for group in targets}
            case Release():
                original = self._original or now
                kept = {group: original.get(group) for group in targets}
                planned = {group: value for group, value in kept.items() if value is not None}
                if _difference(planned, now):
                    self.refuse(planned, boundary)
                return planned
            case _:
                raise Refused(
                    "UNSUPPORTED_OPERATION",
                    f"{self.name} has no schedule, so that {operation_of(change).value} means "
                    "nothing for it; allowed: set, multiply, release",
                )
        limits.check(planned.values())
        planned = {group: self.stored(group, value) for group, value in planned.items()}
        limits.check(planned.values())
        self.refuse(planned, boundary)
        return planned

    def _check_form(self, change: Change) -> None:
        if not isinstance(change, Set | Multiply):
            return
        if change.coupling is not Coupling.NONE and not self.couples:
            raise Refused(
                "UNSUPPORTED_COUPLING",
                f"the learning rate follows changes of the batch size, not of {self.name}; leave "
                f"the coupling {change.coupling.value} out, and change learning_rate itself in the "
                "same update if that is what is wanted",
            )
        if isinstance(change, Set) and change.hold_steps is not None:
            raise Refused(
                "INVALID_STEPS",
                f"{self.name} stays at what it was set to, so that hold_steps means nothing for "
                "it; leave it out",
            )

    @property
    def _limits(self) -> Limits:
        return Limits(
            name=self.name,
            kind=self.kind,
            minimum=self.minimum,
            minimum_exclusive=self.minimum_exclusive,
            maximum=self.maximum,
            maximum_exclusive=self.maximum_exclusive,
            choices=self.choices,
        )


@dataclass(frozen=True, slots=True)
class _Before:
    """What ``undo`` needs."""

    captured: object
    original: dict[str, Value | None] | None


def _first(values: Values) -> Value | None:
    return next(iter(values.values()), None)


def _difference(wanted: Values, got: Values) -> str | None:
    """Return in words where two sets of values differ; None: nowhere."""
    for group, value in wanted.items():
        if group not in got or got[group] != value:
            where = f" of group {group}" if group != EVERY_GROUP else ""
            return f"the value{where} was to be {value!r} and is {got.get(group)!r}"
    return None
