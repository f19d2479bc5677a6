"""Live parameters that a training script declares by itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final

from trainer_agent.parameters.base import EVERY_GROUP, BoundaryKind, Kind
from trainer_agent.parameters.value import ValueParameter, Values

if TYPE_CHECKING:
    from trainer_agent.parameters.changes import Value

_KINDS: Final = ((bool, Kind.BOOL), (int, Kind.INT), (float, Kind.FLOAT), (str, Kind.STRING))
# Where the others are is a trainer's to know. What a reward reads counts from the next generation.
_BOUNDARIES: Final = (BoundaryKind.STEP, BoundaryKind.EPOCH)


class Parameter(ValueParameter):
    """A value of the script's own that can be changed live, in two lines.

    ::

        curriculum = Parameter("curriculum_level", lambda: data.level, data.set_level, minimum=0)
        attach(trainer, parameters=[curriculum])

    Args:
        name: What changes call it; lower_snake_case.
        get: Returns the value in force.
        set: Makes a value the one in force, from the next step on. What either of them raises
            takes the whole update back, and is what the caller is told.
        minimum: Smallest value; None: no limit.
        maximum: Largest value; None: no limit.
        choices: The only values, for a text; empty: any.
        boundary: Where it may change: at every step, or only where an epoch ends, which a loop of
            one's own tells with ``epoch=``.
        description: What it means, in a sentence.
        unit: Its unit, in words; empty: a plain number.
        kind: Its type; None: that of the value now in force.

    Raises:
        TypeError: The value now in force is neither number, text nor truth value. Those of numpy
            and torch are, where they lie on the host; what ``get`` returns later has to be, too.
        ValueError: The name is not lower_snake_case, or the boundary is another one.
    """

    def __init__(
        self,
        name: str,
        get: Callable[[], Value],
        set: Callable[[Value], object],  # noqa: A002 - what it is called everywhere
        *,
        minimum: float | None = None,
        maximum: float | None = None,
        choices: tuple[str, ...] = (),
        boundary: BoundaryKind | str = BoundaryKind.STEP,
        description: str = "",
        unit: str = "",
        kind: Kind | str | None = None,
    ) -> None:
        super().__init__()
        if not name.isidentifier() or name != name.lower():
            raise ValueError(
                f"a live parameter's name must be lower_snake_case, such as curriculum_level; got "
                f"{name!r}"
            )
        if boundary not in _BOUNDARIES:
            raise ValueError(
                f"the live parameter {name} can change at a {' or an '.join(_BOUNDARIES)}; got "
                f"boundary {str(boundary)!r}"
            )
        self._get, self._set = get, set
        # Of the class in every family, and of the object in this one alone.
        self.__dict__.update(
            name=name,
            description=description or f"{name}, declared by the training script",
            kind=Kind.ENUM if choices else Kind(kind) if kind else _kind(_plain(name, get())),
            unit=unit,
            minimum=minimum,
            maximum=maximum,
            choices=tuple(choices),
            boundary=BoundaryKind(boundary),
        )

    def get(self) -> Values:
        """Return the value in force."""
        return {EVERY_GROUP: _plain(self.name, self._get())}

    def stored(self, group: str, value: Value) -> Value:
        """Return what is left of a number where the script keeps it in less precision."""
        there = self._get()
        if isinstance(value, bool | str) or not isinstance(_plain(self.name, there), float):
            return value
        if hasattr(there, "new_tensor"):
            return float(there.new_tensor(value))
        if hasattr(there, "dtype"):
            import numpy as np

            with np.errstate(over="ignore"):  # infinity is no value
                return float(there.dtype.type(value))
        return value

    def put(self, values: Mapping[str, Value]) -> None:
        """Have the script set a value."""
        for value in values.values():
            self._set(value)

    def detach(self) -> None:
        """Begin anew where the script trains a second time."""
        self._original = None


def _plain(name: str, held: object) -> Value:
    """Return what a script holds as a plain value: numpy's and torch's numbers are numbers too.

    Those on an accelerator are not, as reading them would have the run wait for it.

    Raises:
        TypeError: It is none.
    """
    value: Any = held
    if getattr(held, "ndim", None) == 0 and str(getattr(held, "device", "cpu")) == "cpu":
        value = value.item()
    for cls, _ in _KINDS:
        if isinstance(value, cls):
            return cls(value)
    raise TypeError(
        f"the live parameter {name} must hold a text, a truth value or one number on the host; it "
        f"holds {held!r} ({type(held).__name__})"
    )


def _kind(value: Value) -> Kind:
    return next(kind for cls, kind in _KINDS if isinstance(value, cls))
