"""Values that are like another one but for some fields."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest

from control_plane.domain.alike import alike


@dataclass(frozen=True, slots=True)
class Point:
    x: int
    y: int = 2
    name: str = ""


def test_it_is_what_replace_makes() -> None:
    point = Point(1, 5, "a")
    assert alike(point, y=7, name="b") == replace(point, y=7, name="b") == Point(1, 7, "b")
    assert alike(point) == point
    assert point == Point(1, 5, "a")


def test_a_field_that_is_not_there() -> None:
    with pytest.raises(KeyError):
        alike(Point(1), z=3)
