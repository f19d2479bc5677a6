"""What tools have read, in plain sentences: for small models that can not call tools."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from enum import IntEnum
from typing import Any, Final, NamedTuple, Protocol

from analytics_service.chat.fence import one_line

MAX_LENGTH: Final = 4_000
"""Most characters of all sentences: some 1,500 tokens."""

_REASON_LENGTH: Final = 120
_MAX_LABELS: Final = 4
_MAX_SPIKES: Final = 4
_MAX_PARAMETERS: Final = 4
_NAME_LENGTH: Final = 60
_CUT: Final = "(More was left out here.)"


class Read(Protocol):
    """What came of one call of a tool."""

    @property
    def tool(self) -> str:
        """Name of the tool."""

    @property
    def arguments(self) -> Mapping[str, Any] | None:
        """What it was called with."""

    @property
    def result(self) -> Mapping[str, Any] | None:
        """What it returned; None: it failed."""

    @property
    def error(self) -> str:
        """Why it failed."""


def sentences(readings: Sequence[Read], max_length: int = MAX_LENGTH) -> str:
    """Says what was read, line by line; what does not fit is left out, and that is said.

    Each job gets an equal share of the room, so that no job crowds out another, and its spikes
    and changes come before the rest.
    """
    groups: dict[str, list[_Line]] = {}
    for reading in readings:
        job = str((reading.arguments or {}).get("job", ""))
        groups.setdefault(job, []).extend(_lines(reading))
    share = max_length // max(1, len(groups))
    ranked = (sorted(lines, key=lambda line: line.rank) for lines in groups.values())
    return "\n".join(line for lines in ranked for line in _within(lines, share))


class _Rank(IntEnum):
    """What comes first where there is not room for all."""

    STATE = 0
    SPIKE = 1
    CHANGE = 2
    METRIC = 3
    DETAIL = 4


class _Line(NamedTuple):
    rank: _Rank
    text: str


def _within(lines: Iterable[_Line], room: int) -> Iterator[str]:
    room -= len(_CUT) + 1
    for line in lines:
        room -= len(line.text) + 1
        if room < 0:
            yield _CUT
            return
        yield line.text


def _lines(reading: Read) -> Iterator[_Line]:
    if reading.result is None:
        about = (reading.arguments or {}).get("job")
        place = f" of job {_name(about)}" if about else ""
        said = f"{reading.tool}{place} could not be read: {one_line(reading.error, 300)}."
        yield _Line(_Rank.STATE, said)
        return
    match reading.tool:
        case "list_jobs":
            jobs = [_name(each["job"]) for each in reading.result["jobs"]]
            said = f"Jobs: {', '.join(jobs)}." if jobs else "There are no jobs."
            yield _Line(_Rank.STATE, said)
        case "get_job":
            yield from _job(reading.result)
        case "metric_series":
            yield from _metrics(reading.result)
        case "update_history":
            yield from _updates(reading.result)
        case _:
            pass


def _job(job: Mapping[str, Any]) -> Iterator[_Line]:
    name = _name(job["job"])
    parts = [str(job.get("state", "in an unknown state"))]
    if method := job.get("method"):
        parts.append(_name(method))
    if "step" in job:
        end = f" of {_number(job['max_steps'])}" if "max_steps" in job else ""
        parts.append(f"step {_number(job['step'])}{end}")
    message = job.get("state_message", "")
    said = f"Job {name}: {', '.join(parts)}.{' ' + one_line(message, 200) if message else ''}"
    yield _Line(_Rank.STATE, said)
    if ended := job.get("trainer_exit"):
        said = one_line(str(ended.get("message", "")), 200)
        code = ended.get("exit_code", "unknown")
        yield _Line(_Rank.STATE, f"The trainer of {name} ended: exit code {code}. {said}")
    if labels := job.get("labels"):
        shown = list(labels.items())[:_MAX_LABELS]
        said = ", ".join(f"{_name(key)}={_name(value)}" for key, value in shown)
        yield _Line(_Rank.DETAIL, f"Labels of {name}: {said}.")
    for parameter in job.get("parameters", [])[:_MAX_PARAMETERS]:
        values = [
            _number(each["value"]) for each in parameter.get("in_force", []) if "value" in each
        ]
        if values:
            said = f"{_name(parameter['parameter'])} of {name} is {' / '.join(values)} now."
            yield _Line(_Rank.DETAIL, said)


def _metrics(result: Mapping[str, Any]) -> Iterator[_Line]:
    name = _name(result["job"])
    if not result["series"]:
        yield _Line(_Rank.METRIC, f"Job {name} has no metrics yet.")
    for series in result["series"]:
        metric, of = f"{_name(series['metric'])} of {name}", series["statistics"]
        for spike in series["spikes"][:_MAX_SPIKES]:
            yield _Line(_Rank.SPIKE, _spike(metric, spike))
        if not series["spikes"]:
            yield _Line(_Rank.SPIKE, f"{metric} has no spikes.")
        line = (
            f"{metric}: steps {_number(of['first_step'])} to {_number(of['last_step'])}, from "
            f"{_number(of['first_value'])} to {_number(of['last_value'])}"
        )
        if "maximum_value" in of:
            line += (
                f", highest {_number(of['maximum_value'])} at step {_number(of['maximum_step'])}, "
                f"lowest {_number(of['minimum_value'])} at step {_number(of['minimum_step'])}, "
                f"mean {_number(of['mean'])}"
            )
        if of["non_finite_count"]:
            line += (
                f"; {_number(of['non_finite_count'])} samples are NaN or infinite, the first at "
                f"step {_number(of['first_non_finite_step'])}"
            )
        yield _Line(_Rank.METRIC, line + ".")


def _spike(metric: str, spike: Mapping[str, Any]) -> str:
    verb = "spiked" if spike["direction"] == "up" else "dropped"
    start, peak = _number(spike["start_step"]), _number(spike["peak_step"])
    at = "" if start == peak else f", peak at step {peak}"
    ending = {
        "recovered": f"back by step {_number(spike['end_step'])}",
        "new_level": "and stayed there",
        "ongoing": "not back yet",
    }[spike["ending"]]
    return (
        f"{metric} {verb} at step {start} ({_number(spike['baseline_before'])} → "
        f"{_number(spike['peak_value'])}{at}), {ending}."
    )


def _updates(result: Mapping[str, Any]) -> Iterator[_Line]:
    name = _name(result["job"])
    if not result["updates"]:
        yield _Line(_Rank.CHANGE, f"Nothing was changed in {name}.")
    for update in result["updates"]:
        at = update.get("applied_at_step")
        state = update.get("state", "in an unknown state")
        when = f"applied at step {_number(at)}" if at is not None else str(state)
        line = (
            f"Change {_number(update['revision'])} of {name}, {when}: {_what(update)} by "
            f"{_name(update.get('author', 'somebody'))}."
        )
        if by := update.get("rolled_back_by"):
            line += f" Change {_number(by)} rolled it back: it is in force no more."
        if rejected := update.get("rejected"):
            why = one_line(rejected.get("message") or rejected.get("reason", ""), 200)
            line += f" Rejected because: {why.rstrip('.')}."
        if reason := update.get("reason"):
            line += f" Reason given: “{one_line(reason, _REASON_LENGTH)}”."
        yield _Line(_Rank.CHANGE, line)


def _what(update: Mapping[str, Any]) -> str:
    """What an update changed or asked for."""
    done = [
        f"{_name(each['parameter'])}{_group(each)} {_number(each['old'])} → {_number(each['new'])}"
        for each in update.get("transitions", [])
    ]
    if not done:
        asked = ("value", "factor", "shape")
        done = [
            " ".join(
                [
                    f"{each['operation']} {_name(each['parameter'])}{_group(each)}",
                    *(_number(each[key]) for key in asked if key in each),
                ]
            )
            for each in update.get("changes", [])
        ]
    if action := update.get("action"):
        done.append(_name(action))
    return ", ".join(done[:4]) or "no parameter"


def _group(of: Mapping[str, Any]) -> str:
    return f" (group {_name(of['group'])})" if of.get("group") else ""


def _number(value: object) -> str:
    """A number to four digits, which is what small models can keep apart."""
    if value is None:
        return "unknown"
    if isinstance(value, float):
        return f"{value:.4g}"
    return _name(value)


def _name(value: object) -> str:
    return one_line(str(value), _NAME_LENGTH)
