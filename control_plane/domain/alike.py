"""Values that are like another one but for some fields."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from functools import cache
from operator import attrgetter
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

T = TypeVar("T", bound="DataclassInstance")


def alike(of: T, **changes: Any) -> T:
    """`dataclasses.replace` in a third of its time, for those of many fields changed by thousands.

    Args:
        of: A dataclass of several fields, all of which its constructor takes by position.
        **changes: Fields that are to be otherwise.

    Raises:
        KeyError: If there is no such field.
    """
    kind = type(of)
    get, places = _layout(kind)
    values = list(get(of))
    for name, value in changes.items():
        values[places[name]] = value
    return kind(*values)


@cache
def _layout(kind: type[Any]) -> tuple[Callable[[Any], tuple[Any, ...]], dict[str, int]]:
    names = [field.name for field in fields(kind)]
    return attrgetter(*names), {name: place for place, name in enumerate(names)}
