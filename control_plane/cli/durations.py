"""Durations on the command line: ``10m``, ``1h30m``, ``1.5s``, ``500ms``, ``90``."""

from __future__ import annotations

import re
from typing import Final

_UNITS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_PART: Final = re.compile(r"(?P<number>\d+(?:\.\d+)?)(?P<unit>ms|s|m|h|d)", re.ASCII)
_SECONDS: Final = re.compile(r"\d+(?:\.\d+)?", re.ASCII)
# A protobuf Duration holds 10,000 years; a century is far beyond any use.
_LIMIT_S: Final = 100 * 365 * 86400.0


def parse_duration(text: str) -> float:
    """Returns the seconds that a text means; a plain number means seconds.

    Raises:
        ValueError: The text is no duration, is zero or longer than a century.
    """
    stripped = text.strip()
    if _SECONDS.fullmatch(stripped):
        seconds = float(stripped)
    else:
        parts = list(_PART.finditer(stripped))
        if not parts or "".join(part[0] for part in parts) != stripped:
            raise ValueError(f"{text!r} is no duration; write 90s, 10m, 1h30m or 2d")
        seconds = sum(float(part["number"]) * _UNITS[part["unit"]] for part in parts)
    if not 0 < seconds <= _LIMIT_S:
        raise ValueError(f"{text!r} is out of range: a duration is above 0 and up to 100 years")
    return seconds
