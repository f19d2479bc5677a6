"""Live parameters that a training script declares by itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Final

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
        TypeError: The value now in force is neither number, text nor truth value.
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
        inferred = Kind.ENUM if choices else Kind(kind) if kind else _kind(name, get())
        # Of the class in every family, and of the object in this one alone.
        self.__dict__.update(
            name=name,
            description=description or f"{name}, declared by the training script",
            kind=inferred,
            unit=unit,
            minimum=minimum,
            maximum=maximum,
            choices=tuple(choices),
            boundary=BoundaryKind(boundary),
        )

    def get(self) -> Values:
        """Return the value in force."""
        return {EVERY_GROUP: self._get()}

    def put(self, values: Mapping[str, Value]) -> None:
        """Have the script set a value."""
        for value in values.values():
            self._set(value)

    def detach(self) -> None:
        """Begin anew where the script trains a second time."""
        self._original = None


def _kind(name: str, value: object) -> Kind:
    for cls, kind in _KINDS:
        if isinstance(value, cls):
            return kind
    raise TypeError(
        f"the live parameter {name} must hold a number, a text or a truth value; it holds "
        f"{value!r} ({type(value).__name__})"
    )
