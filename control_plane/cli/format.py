"""Numbers and times, short, for people. Pure. What is unknown is a dash, never a zero."""

from __future__ import annotations

import math
from typing import Final

from control_plane import wording

UNKNOWN: Final = wording.UNKNOWN
number = wording.number

_AGES: Final = ((86400.0, "d"), (3600.0, "h"), (60.0, "min"))


def rate(value: float | None) -> str:
    """Formats a speed or another number that is only of interest roughly: 3.25, 0.041, 118."""
    if value is None:
        return UNKNOWN
    if not math.isfinite(value):
        return str(float(value))
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def of_total(done: int | None, total: int | None) -> str:
    """Formats progress: 120/1000."""
    if done is None:
        return UNKNOWN
    return f"{done}/{UNKNOWN if total is None else total}"


def span(seconds: float | None) -> str:
    """Formats a length of time: 4.2 ms, 812 ms, 3.1 s, 5 min, 2 h, 3 d."""
    if seconds is None:
        return UNKNOWN
    if seconds < 0.01:
        return f"{seconds * 1000:.1f} ms"
    if seconds < 0.9995:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    return _coarse(seconds)


def age(seconds: float | None) -> str:
    """Formats how long ago something was: now, 3 s ago, in 5 min.

    Clocks of different hosts differ by a little: half a second either way is now.
    """
    if seconds is None:
        return UNKNOWN
    if abs(seconds) < 0.5:
        return "now"
    return f"{_coarse(seconds)} ago" if seconds > 0 else f"in {_coarse(-seconds)}"


def _coarse(seconds: float) -> str:
    if seconds < 59.5:
        return f"{max(1, round(seconds))} s"
    for size, unit in _AGES:
        # Rounded down: what is 59 min 50 s ago is not an hour ago.
        if seconds >= size:
            return f"{int(seconds // size)} {unit}"
    return "1 min"
