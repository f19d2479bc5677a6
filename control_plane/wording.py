"""What callers ask for, in words: for audit records, tables and lines. Pure."""

from __future__ import annotations

import math
from typing import Final

from control_plane.changes import from_value
from midcourse.control.v1 import parameter_pb2, update_pb2

UNKNOWN: Final = "–"
LEARNING_RATE: Final = "learning_rate"

_FOLLOWS: Final = {
    update_pb2.COUPLING_LINEAR: f", {LEARNING_RATE} in proportion",
    update_pb2.COUPLING_SQRT: f", {LEARNING_RATE} by the square root",
}


def number(value: float | None, digits: int = 6) -> str:
    """Formats a value with some significant digits: 5e-05, 0.0002, 1.5; whole ones in full."""
    if value is None:
        return UNKNOWN
    if not math.isfinite(value):
        return str(float(value))
    if isinstance(value, int) or (value.is_integer() and abs(value) < 10**digits):
        return str(int(value))
    return f"{value:.{digits}g}"


def value(wrapped: parameter_pb2.Value) -> str:
    """Returns a parameter's value: 5e-05, true, a text."""
    plain = from_value(wrapped)
    if isinstance(plain, bool):
        return "true" if plain else "false"
    if plain is None or isinstance(plain, int | float):
        return number(plain)
    return plain


def change(asked: update_pb2.Change) -> str:
    """Returns what was asked for: learning_rate → 5e-05, learning_rate × 0.5."""
    name = f"{asked.parameter}[{asked.group}]" if asked.group else asked.parameter
    match asked.WhichOneof("operation"):
        case "set":
            text = f"{name} → {value(asked.set.value)}"
            if asked.set.mode == update_pb2.SET_MODE_PEAK:
                return f"{name} peak → {value(asked.set.value)}"
            if asked.set.mode == update_pb2.SET_MODE_HOLD:
                return f"{text}, held{_for_steps(asked.set)}"
            return text + _FOLLOWS.get(asked.coupling, "")
        case "multiply":
            return f"{name} × {number(asked.multiply.factor)}"
        case "ramp":
            return f"{name} → {value(asked.ramp.value)} over {asked.ramp.steps} steps"
        case "schedule":
            plan = asked.schedule
            words = [name, _shape(plan.shape)]
            if plan.HasField("peak"):
                words.append(f"from {number(plan.peak)}")
            words.append(f"to {number(plan.floor)}")
            if plan.HasField("steps"):
                words.append(f"over {plan.steps} steps")
            return " ".join(words)
        case "release":
            return f"{name} released"
        case None:
            return f"{name}: nothing"


def _shape(shape: update_pb2.ScheduleShape.ValueType) -> str:
    if shape not in update_pb2.ScheduleShape.values():
        return f"shape {shape}"
    return update_pb2.ScheduleShape.Name(shape).removeprefix("SCHEDULE_SHAPE_").lower()


def _for_steps(asked: update_pb2.SetChange) -> str:
    return f" for {asked.hold_steps} steps" if asked.HasField("hold_steps") else ""


def action(asked: update_pb2.Action) -> str:
    """Returns what is to be done once: pause, roll back to a checkpoint."""
    words = (asked.WhichOneof("kind") or "nothing").replace("_", " ")
    to = asked.roll_back.checkpoint
    return f"{words} to {to}" if to else words
