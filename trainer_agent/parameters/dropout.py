"""The dropout probabilities of a model, by what its modules call them.

A probability lies in a dropout module (``p``) or, where a model calls the function, as a number on
the module whose methods read it, such as ``attention_dropout``. Both are read at every forward
pass. A number that no method reads is left alone: writing it would change nothing.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from torch import nn
from torch.nn.modules.dropout import _DropoutNd

from trainer_agent.parameters.base import Boundary, Refused
from trainer_agent.parameters.changes import Change, Set, Value
from trainer_agent.parameters.value import ValueParameter, Values

if TYPE_CHECKING:
    from types import CodeType

    from trainer_agent.run import Run

# Not of layers as a whole (layerdrop, drop_path), which are other techniques.
_NAME = re.compile(r"(^|_)(dropout|pdrop)($|_)")
_SETTING_UP = frozenset({"__init__", "reset_parameters", "extra_repr", "__setstate__"})


class Place(NamedTuple):
    """Where a probability lies."""

    module: nn.Module
    attribute: str

    @property
    def value(self) -> float:
        """The probability."""
        return float(getattr(self.module, self.attribute))


class Dropout(ValueParameter):
    """The probabilities with which a model's activations are set to zero while it trains.

    Args:
        places: Where they lie, by group; all of a group hold the same.
    """

    name: ClassVar[str] = "dropout"
    description: ClassVar[str] = (
        "Probability with which a model's activations are dropped while it trains, by the name "
        "that its modules give it. A compiled model is compiled anew for a new value."
    )
    minimum: ClassVar[float | None] = 0.0
    maximum: ClassVar[float | None] = 1.0
    maximum_exclusive: ClassVar[bool] = True

    def __init__(self, places: Mapping[str, list[Place]]) -> None:
        super().__init__()
        self._places = {group: list(each) for group, each in places.items()}

    def get(self) -> Values:
        """Return the probabilities in force; None where a group's modules disagree by now."""
        found = {group: {place.value for place in places} for group, places in self._places.items()}
        return {
            group: values.pop() if len(values) == 1 else None for group, values in found.items()
        }

    def put(self, values: Mapping[str, Value]) -> None:
        """Write the probabilities of the groups that are named."""
        for group, value in values.items():
            for place in self._places[group]:
                setattr(place.module, place.attribute, value)

    def capture(self) -> object:
        """Return every module's own value."""
        return [
            (place, getattr(place.module, place.attribute))
            for places in self._places.values()
            for place in places
        ]

    def restore(self, captured: Any) -> None:
        """Put every module's own value back."""
        for place, value in captured:
            setattr(place.module, place.attribute, value)

    def targets(self, change: Change, now: Values) -> list[str]:
        """Return the groups that a change is for.

        Raises:
            Refused: There is no such group; or it names none, and one value for all would turn on
                dropouts that are off, or make equal what is not.
        """
        if isinstance(change, Set) and change.group is None and len(set(now.values())) > 1:
            raise Refused(
                "GROUP_NEEDED",
                "this model's dropouts differ, and one value for all would make them equal: name "
                f"one of {', '.join(f'{group} ({value:g})' for group, value in _known(now))}, or "
                "multiply all",
            )
        return super().targets(change, now)

    def refuse(self, values: Mapping[str, Value], boundary: Boundary) -> None:
        """Refuse to write over values that something else has made differ.

        Raises:
            Refused: The modules of a group disagree.
        """
        now = self.get()
        if apart := [group for group in values if now[group] is None]:
            raise Refused(
                "VALUES_DISAGREE",
                f"something else has changed some modules of {', '.join(apart)} and not the "
                "others; make them equal where that was done, or leave them alone",
            )


def _known(values: Values) -> list[tuple[str, float]]:
    return [(group, float(value)) for group, value in values.items() if value is not None]


def find(run: Run) -> Iterator[Dropout]:
    """Return the dropout of a run's model, if it has any."""
    if isinstance(run.model, nn.Module):
        places = find_places(run.model)
        if places:
            yield Dropout(places)


def find_places(model: nn.Module) -> dict[str, list[Place]]:
    """Return where a model's dropout probabilities lie, by group.

    A group is what has one name and one value: ``attn_dropout`` or, where modules of the name
    differ, ``attn_dropout=0.1`` and ``attn_dropout=0.2``, by what they began with.
    """
    by_name: dict[str, list[Place]] = {}
    for path, module in model.named_modules():
        if isinstance(module, _DropoutNd):
            by_name.setdefault(_name(path), []).append(Place(module, "p"))
            continue
        for attribute, value in vars(module).items():
            if _is_probability(attribute, value) and _reads(type(module), attribute):
                by_name.setdefault(attribute, []).append(Place(module, attribute))
    groups: dict[str, list[Place]] = {}
    for name, places in by_name.items():
        uniform = len({place.value for place in places}) == 1
        for place in places:
            groups.setdefault(name if uniform else f"{name}={place.value:g}", []).append(place)
    return groups


def _is_probability(attribute: str, value: object) -> bool:
    return (
        isinstance(value, int | float)
        and not isinstance(value, bool)
        and 0.0 <= value <= 1.0
        and _NAME.search(attribute) is not None
    )


def _name(path: str) -> str:
    """Return what a dropout module is called: the last part of its path that says dropout.

    An adapter's ``lora_dropout.default`` is ``lora_dropout``; what is only numbered, as in
    ``classifier.0``, is called by where it is.
    """
    parts = path.split(".")
    for part in reversed(parts):
        if _NAME.search(part) or "drop" in part:
            return part
    named = [part for part in parts if not part.isdigit()]
    return named[-1] if named else path or "dropout"


def _reads(cls: type[nn.Module], attribute: str) -> bool:
    """Say whether a method of a module's class, other than those that set it up, reads it."""
    return any(
        attribute in code.co_names
        for base in cls.__mro__
        if base is not nn.Module and issubclass(base, nn.Module)
        for name, method in vars(base).items()
        if name not in _SETTING_UP
        for code in _codes(method)
    )


def _codes(method: object) -> Iterator[CodeType]:
    """Return the code of a method, and of what is defined in it."""
    function = inspect.unwrap(method) if callable(method) else method
    pending = [getattr(function, "__code__", None)]
    while pending:
        code = pending.pop()
        if inspect.iscode(code):
            yield code
            pending.extend(code.co_consts)
