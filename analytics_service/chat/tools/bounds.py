"""Keeps results within a size."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from copy import deepcopy
from typing import Any, Final

from analytics_service.chat.tools.tool import ToolError
from analytics_service.chat.tools.values import size_of

_ROOM_FOR_NOTES: Final = 512


def bounded(result: Mapping[str, Any], max_bytes: int) -> Mapping[str, Any]:
    """Returns a result, with the ends of its largest lists left out where it is too large.

    Then `left_out` says of which lists how many elements are missing.

    Raises:
        ToolError: It is too large all the same.
    """
    if size_of(result) <= max_bytes:
        return result
    smaller: dict[str, Any] = deepcopy(dict(result))
    left_out: dict[str, int] = {}
    while size_of(smaller) > max_bytes - _ROOM_FOR_NOTES:
        sizes = {path: size_of(each) for path, each in _lists("", smaller) if _is_divisible(each)}
        if not sizes:
            raise ToolError("the result is too large; ask for less at once")
        path = max(sizes, key=lambda each: sizes[each])
        found = dict(_lists("", smaller))[path]
        keep = len(found) // 2
        left_out[path] = left_out.get(path, 0) + len(found) - keep
        del found[keep:]
    # What was cut off with a list around it is told by that list.
    told = {path: count for path, count in left_out.items() if path in dict(_lists("", smaller))}
    return {**smaller, "left_out": dict(list(told.items())[:8]), "note": "too large; ask for less"}


def _is_divisible(found: list[Any]) -> bool:
    """Whether a list may lose its end. A point, which is a step and its value, may not."""
    return len(found) > 1 and not all(isinstance(each, int | float) for each in found)


def _lists(path: str, value: Any) -> Iterator[tuple[str, list[Any]]]:
    """Every list within a value, with its place such as "series.0.points"."""
    if isinstance(value, list):
        yield path, value
        children: Any = enumerate(value)
    elif isinstance(value, Mapping):
        children = value.items()
    else:
        return
    for key, each in children:
        yield from _lists(f"{path}.{key}" if path else str(key), each)
