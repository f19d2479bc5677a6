"""A value that a trainer keeps in one place or in several."""

from __future__ import annotations

from collections.abc import Callable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from types import CellType
from typing import TYPE_CHECKING, Any

from trainer_agent.parameters.base import EVERY_GROUP, Applied, Boundary, Reading, Refused
from trainer_agent.parameters.value import ValueParameter, Values

if TYPE_CHECKING:
    from trainer_agent.parameters.changes import Value

NOT_ATTACHED = (
    "the value lies on the trainer, which a callback is not shown: call "
    "trainer_agent.attach(trainer) rather than giving the callback to the trainer"
)
"""Why what lies on the trainer can not be changed where only the callback is known."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a value lies."""

    where: str
    """In words, as in ``trainer.beta``."""
    read: Callable[[], Any]
    write: Callable[[Any], None]


def attribute(owner: Any, name: str, where: str) -> Place:
    """Return the place that an attribute is.

    Raises:
        LookupError: There is no such attribute.
    """
    if not hasattr(owner, name):
        raise LookupError(f"{where}.{name} is not there in these versions of its libraries")
    return Place(
        f"{where}.{name}", lambda: getattr(owner, name), lambda value: setattr(owner, name, value)
    )


def item(owner: MutableMapping[str, Any], key: str, where: str) -> Place:
    """Return the place that an entry of a mapping is.

    Raises:
        LookupError: There is no such entry.
    """
    if key not in owner:
        raise LookupError(f"{where}[{key!r}] is not there in these versions of its libraries")

    def write(value: Any) -> None:
        owner[key] = value

    return Place(f"{where}[{key!r}]", lambda: owner[key], write)


def cell(closed_over: CellType, where: str) -> Place:
    """Return the place that a variable is which a function has closed over."""

    def write(value: Any) -> None:
        closed_over.cell_contents = value

    return Place(where, lambda: closed_over.cell_contents, write)


class PlacedValue(ValueParameter):
    """A value that lies in several places, all of which must hold the same.

    Args:
        places: Where the training loop reads it.
        mirrors: Where it is written as well, for logs and checkpoints to tell the truth.
        why_unavailable: Why it can not be changed in this run; None: it can.
    """

    def __init__(
        self,
        places: Sequence[Place] = (),
        mirrors: Sequence[Place] = (),
        why_unavailable: str | None = None,
    ) -> None:
        super().__init__()
        self._places = tuple(places)
        self._mirrors = tuple(mirrors)
        self._why = why_unavailable
        if self._why is None and (disagreement := self._disagreement()):
            self._why = (
                f"the script gave it several values, so that one for all would undo that: "
                f"{disagreement}"
            )

    def why_unavailable(self) -> str | None:
        """Return why it can not be changed in this run; None: it can."""
        return self._why

    def get(self) -> Values:
        """Return the value in force; None where the places disagree."""
        first, *others = (place.read() for place in self._places)
        return {EVERY_GROUP: first if all(value == first for value in others) else None}

    def put(self, values: Mapping[str, Value]) -> None:
        """Write the value everywhere.

        Raises:
            Refused: It was written, and not every place holds it.
        """
        for value in values.values():
            for place in (*self._places, *self._mirrors):
                place.write(value)
        if disagreement := self._disagreement():
            raise Refused(
                "READ_BACK_DIFFERS", f"{self.name} was set and read back otherwise: {disagreement}"
            )

    def capture(self) -> object:
        """Return what lies in each place."""
        return [place.read() for place in (*self._places, *self._mirrors)]

    def restore(self, captured: Any) -> None:
        """Put back what lay in each place, also where it was not the same in all."""
        for place, value in zip((*self._places, *self._mirrors), captured, strict=True):
            place.write(value)

    def refuse(self, values: Mapping[str, Value], boundary: Boundary) -> None:
        """Refuse to write over values of which none is in force.

        Raises:
            Refused: The places disagree.
        """
        if disagreement := self._disagreement():
            raise Refused(
                "VALUES_DISAGREE",
                f"something else has changed {self.name} in one place and not in the others: "
                f"{disagreement}; make them equal where that was done, or leave {self.name} alone",
            )

    def verify(self, applied: Applied, used: Reading, boundary: Boundary) -> str | None:
        """Say whether the step after a change used it."""
        return self._disagreement() or super().verify(applied, used, boundary)

    def _disagreement(self) -> str | None:
        """Return in words which place holds what; None: all hold the same."""
        found = [(place.where, place.read()) for place in self._places]
        if all(value == found[0][1] for _, value in found[1:]):
            return None
        return ", ".join(f"{where} is {value!r}" for where, value in found)


def trl_methods(*candidates: Any) -> frozenset[str]:
    """Return the training methods of TRL that trainers or training arguments descend from.

    A class derived from ``DPOTrainer`` or ``DPOConfig`` gives ``dpo``. TRL is not imported for it.
    """
    return frozenset(
        cls.__name__.removesuffix(suffix).lower()
        for candidate in candidates
        for cls in type(candidate).__mro__
        for suffix in ("Trainer", "Config")
        if cls.__module__.startswith("trl.") and cls.__name__.endswith(suffix)
    )
