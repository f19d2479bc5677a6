"""Reads fields of what came over the wire, as JSON or as an SDK's objects.

The SDKs do not check what they decode: whatever its type says, any field may be missing or be
something else.
"""

from __future__ import annotations

from typing import Any


def field(of: object, name: str) -> Any:
    """A field; None: it is not there."""
    return of.get(name) if isinstance(of, dict) else getattr(of, name, None)


def string(of: object, name: str) -> str:
    """A text; empty: it is not there."""
    value = field(of, name)
    return value if isinstance(value, str) else ""


def items(of: object, name: str) -> list[Any]:
    """A list; empty: it is not there."""
    value = field(of, name)
    return value if isinstance(value, list) else []


def count(of: object, name: str) -> int | None:
    """A number of tokens; None: it is not there."""
    value = field(of, name)
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None
