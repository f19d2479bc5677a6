"""Calls of tools in one line each. Pure.

Tools are the analytics service's matter and may change: what is not known is told in general.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from google.protobuf.struct_pb2 import Struct, Value

from control_plane.cli import format as fmt
from control_plane.cli import printable
from control_plane.cli.analytics.words import plural
from midcourse.analytics.v1 import session_pb2

_MOST_CHARACTERS: Final = 48


def call(made: session_pb2.ToolCall) -> str:
    """Returns what is called with what: metric_series my-run loss 1–200."""
    words = [printable.line(made.tool)]
    if not made.HasField("arguments"):
        return f"{words[0]} with arguments that can not be read"
    arguments = _plain_table(made.arguments)
    job, metrics = arguments.pop("job", ""), arguments.pop("metrics", [])
    words += [_short(each) for each in (job, *_listed(metrics)) if each]
    words += _steps(arguments.pop("first_step", None), arguments.pop("last_step", None))
    words += [
        f"{printable.line(key)}={_short(value)}"
        for key, value in sorted(arguments.items())  # the API keeps no order
        if value not in ("", [], {}, None)
    ]
    return " ".join(words)


def result(made: session_pb2.ToolCall) -> str:
    """Returns what came of a call, in short; empty if there is nothing to say."""
    if made.error:
        return f"failed: {printable.line(made.error)}"
    if not made.HasField("result"):
        return ""
    found = _plain_table(made.result)
    known = _RESULTS.get(made.tool)
    return (known(found) if known is not None else "") or _general(found)


def line(made: session_pb2.ToolCall) -> str:
    """Returns a call and what came of it: metric_series my-run loss → 200 samples (12 ms)."""
    words = call(made)
    if made.by_service:
        words += " (by the service)"
    if came := result(made):
        words += f" → {came}"
    words = printable.line(words)
    return f"{words} ({fmt.span(made.duration)})" if made.HasField("duration") else words


def _plain_table(table: Struct) -> dict[str, Any]:
    """Returns a table of the API's as Python has it; infinite numbers too, unlike JSON."""
    return {key: _plain(value) for key, value in table.fields.items()}


def _plain(value: Value) -> Any:
    match value.WhichOneof("kind"):
        case "struct_value":
            return _plain_table(value.struct_value)
        case "list_value":
            return [_plain(each) for each in value.list_value.values]
        case None | "null_value":
            return None
        case kind:
            return getattr(value, kind)


def _steps(first: object, last: object) -> list[str]:
    match first, last:
        case None, None:
            return []
        case _, None:
            return [f"{_short(first)}–"]
        case None, _:
            return [f"–{_short(last)}"]
        case _:
            return [f"{_short(first)}–{_short(last)}"]


def _short(value: object) -> str:
    match value:
        case bool():
            return "yes" if value else "no"
        case float() if value.is_integer():
            return str(int(value))  # a step is never 1.2e+06
        case int() | float():
            return fmt.number(value)
        case str():
            plain = printable.line(value)
            many = len(plain) > _MOST_CHARACTERS
            return f"{plain[: _MOST_CHARACTERS - 1]}…" if many else plain
        case list() if all(isinstance(each, str | int | float) for each in value):
            return _short(",".join(map(_short, value)))
        case list():
            return f"[{len(value)}]"
        case _:
            return "{…}"


def _listed(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


def _jobs(found: Mapping[str, Any]) -> str:
    names = [_short(job.get("job", "")) for job in _listed(found.get("jobs")) if _is_table(job)]
    shown = ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
    return f"{plural(len(names), 'job')}{': ' if names else ''}{shown}"


def _job(found: Mapping[str, Any]) -> str:
    words = [_short(found["state"])] if "state" in found else []
    if "step" in found:
        total = f"/{_short(found['max_steps'])}" if "max_steps" in found else ""
        words.append(f"step {_short(found['step'])}{total}")
    return ", ".join(words)


def _series(found: Mapping[str, Any]) -> str:
    words = [_one_series(each) for each in _listed(found.get("series")) if _is_table(each)]
    if missing := _listed(found.get("no_samples_in_range")):
        words.append(f"no samples of {', '.join(map(_short, missing))}")
    return "; ".join(words)


def _one_series(series: Mapping[str, Any]) -> str:
    statistics = series.get("statistics", {})
    samples = statistics.get("count") if _is_table(statistics) else None
    words = _short(series.get("metric", "?"))
    if isinstance(samples, int | float):
        words += f" {plural(int(samples), 'sample')}"
    steps = [
        _spike(spike)
        for spike in _listed(series.get("spikes"))
        if _is_table(spike) and "peak_step" in spike
    ]
    if steps:
        words += f", spike{'s' if len(steps) > 1 else ''} at {', '.join(steps[:4])}"
        words += ", …" if len(steps) > 4 else ""
    return words


def _spike(spike: Mapping[str, Any]) -> str:
    """Where it began, and where its peak was if that is elsewhere."""
    peak = spike["peak_step"]
    start = spike.get("start_step", peak)
    return _short(peak) if start == peak else f"{_short(start)} (peak {_short(peak)})"


def _updates(found: Mapping[str, Any]) -> str:
    return plural(len(_listed(found.get("updates"))), "update")


def _draft(found: Mapping[str, Any]) -> str:
    match found.get("valid"):
        case True:
            return "valid"
        case False:
            return f"not valid: {_short(found.get('why', ''))}"
        case _:
            return "not checked"


def _general(found: Mapping[str, Any]) -> str:
    return ", ".join(
        f"{len(value)} {printable.line(key)}"
        for key, value in sorted(found.items())  # the API keeps no order
        if isinstance(value, list)
    )


def _is_table(value: object) -> bool:
    return isinstance(value, Mapping)


_RESULTS: Final[dict[str, Callable[[Mapping[str, Any]], str]]] = {
    "list_jobs": _jobs,
    "get_job": _job,
    "metric_series": _series,
    "update_history": _updates,
    "propose_update": _draft,
}
