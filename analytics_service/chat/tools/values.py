"""What protobuf and Python values become in a tool's result: JSON that is exact and finite."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from analytics_service.chat.fence import TEXT_LENGTH, clipped, whole
from control_plane import changes
from midcourse.control.v1 import parameter_pb2, update_pb2

if TYPE_CHECKING:
    from google.protobuf.timestamp_pb2 import Timestamp

_EXACT: Final = 2**53
_DEPTH: Final = 12


def number(value: float) -> int | float | str:
    """A number; as text where JSON has none: NaN, infinities, and integers beyond 2^53."""
    if isinstance(value, int):
        return value if -_EXACT <= value <= _EXACT else str(value)
    if math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


def value_of(value: parameter_pb2.Value) -> int | float | str | bool | None:
    """A parameter's value; None: unknown."""
    plain = changes.from_value(value)
    if plain is None or isinstance(plain, bool):
        return plain
    return clipped(plain, TEXT_LENGTH) if isinstance(plain, str) else number(plain)


def time_of(time: Timestamp) -> str:
    """A time as ISO 8601, UTC."""
    return time.ToJsonString()


def without_absent(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Leaves out what is unknown or empty; False and zero stay."""
    return {
        key: value
        for key, value in fields.items()
        if value is not None and value not in ("", [], {})
    }


def plain_json(value: Any, depth: int = 0) -> Any:
    """Whatever a model wrote, as JSON that can be kept: finite numbers, whole characters."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, (int, float)):
        return number(value)
    if depth < _DEPTH:
        if isinstance(value, Mapping):
            return {whole(str(key)): plain_json(each, depth + 1) for key, each in value.items()}
        if isinstance(value, (list, tuple)):
            return [plain_json(each, depth + 1) for each in value]
    return whole(value if isinstance(value, str) else "…")


def size_of(result: object) -> int:
    """Bytes of a result as JSON."""
    return len(json.dumps(result, ensure_ascii=False).encode())


_COUPLINGS: Final = {update_pb2.COUPLING_LINEAR: "linear", update_pb2.COUPLING_SQRT: "sqrt"}


def operation_of(change: update_pb2.Change) -> dict[str, Any]:
    """A change, in the terms in which the model would draft it."""
    common = without_absent({"parameter": change.parameter, "group": change.group})
    match change.WhichOneof("operation"):
        case "set":
            name = {update_pb2.SET_MODE_PEAK: "peak", update_pb2.SET_MODE_HOLD: "hold"}
            of_set = change.set
            steps = of_set.hold_steps if of_set.HasField("hold_steps") else None
            fields = {
                "value": value_of(of_set.value),
                "steps": steps,
                "learning_rate_follows": _COUPLINGS.get(change.coupling),
            }
            operation = name.get(of_set.mode, "set")
        case "multiply":
            operation, fields = "multiply", {"factor": number(change.multiply.factor)}
        case "ramp":
            operation = "ramp"
            fields = {"value": value_of(change.ramp.value), "steps": number(change.ramp.steps)}
        case "schedule":
            operation, fields = "schedule", _schedule(change.schedule)
        case "release":
            operation, fields = "release", {}
        case _:
            operation, fields = "unknown", {}
    return {**common, "operation": operation, **without_absent(fields)}


def _schedule(schedule: update_pb2.ScheduleChange) -> dict[str, Any]:
    shape = update_pb2.ScheduleShape.Name(schedule.shape)
    return {
        "shape": shape.removeprefix("SCHEDULE_SHAPE_").lower(),
        "peak": number(schedule.peak) if schedule.HasField("peak") else None,
        "warmup_steps": number(schedule.warmup_steps),
        "floor": number(schedule.floor),
        "steps": number(schedule.steps) if schedule.HasField("steps") else None,
    }
