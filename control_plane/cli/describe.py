"""The API's messages in words, for tables and lines. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable

from google.protobuf.timestamp_pb2 import Timestamp

from control_plane import wording
from control_plane.cli import format as fmt
from midcourse.control.v1 import job_pb2, parameter_pb2, update_pb2

LEARNING_RATE = wording.LEARNING_RATE
GUARD = "guard"
"""Author of what a training process changes by itself."""

# Later ones come more seldom: an update waits for the last of them.
_BOUNDARIES = {
    parameter_pb2.BOUNDARY_ACCUMULATION: "accumulation",
    parameter_pb2.BOUNDARY_GENERATION: "generation",
    parameter_pb2.BOUNDARY_EPOCH: "epoch",
}
_METRICS_SHOWN = 4

# What was asked for reads the same in the control plane's own records.
value = wording.value
change = wording.change
action = wording.action


def job_state(state: job_pb2.JobState.ValueType) -> str:
    """Returns RUNNING for JOB_STATE_RUNNING."""
    return job_pb2.JobState.Name(state).removeprefix("JOB_STATE_")


def update_state(state: update_pb2.UpdateState.ValueType) -> str:
    """Returns APPLIED for UPDATE_STATE_APPLIED."""
    return update_pb2.UpdateState.Name(state).removeprefix("UPDATE_STATE_")


def seconds(time: Timestamp) -> float:
    """Returns the seconds since 1970 of a time."""
    return time.seconds + time.nanos / 1e9


def age(message: job_pb2.Job | job_pb2.Session | update_pb2.Update, field: str, now: float) -> str:
    """Returns how long ago a time of a message was; a dash if it is absent."""
    known = message.HasField(field)  # type: ignore[arg-type]  # any field name of any of them
    return fmt.age(now - seconds(getattr(message, field)) if known else None)


def step(job: job_pb2.Job) -> str:
    """Returns the progress of a job: 120/1000."""
    if not job.HasField("progress"):
        return fmt.UNKNOWN
    progress = job.progress
    return fmt.of_total(
        progress.step, progress.max_steps if progress.HasField("max_steps") else None
    )


def speed(job: job_pb2.Job) -> str:
    """Returns a job's optimizer steps a second; a dash while it takes none, or nobody knows."""
    known = job.state == job_pb2.JOB_STATE_RUNNING and job.progress.HasField("steps_per_second")
    return fmt.rate(job.progress.steps_per_second if known else None)


def metric(job: job_pb2.Job, name: str) -> str:
    """Returns the newest value of a metric."""
    return fmt.number(next((m.value for m in job.metrics if m.name == name), None), 4)


def learning_rate(job: job_pb2.Job) -> str:
    """Returns the newest learning rate known: as logged, or as confirmed after an update."""
    logged = next((m for m in job.metrics if m.name == LEARNING_RATE), None)
    confirmed = effective(job, LEARNING_RATE)
    if confirmed is not None and (logged is None or confirmed.step > logged.step):
        return value(confirmed.value)
    return fmt.number(None if logged is None else logged.value, 4)


def effective(job: job_pb2.Job, parameter: str) -> job_pb2.EffectiveParameter | None:
    """Returns the confirmed value of a parameter: the first group's, if there are several."""
    return next((e for e in job.effective.parameters if e.parameter == parameter), None)


def transitions(made: Iterable[update_pb2.ParameterTransition]) -> list[str]:
    """Returns old → new of each parameter; of several groups the first, and how many more."""
    by_name: dict[str, list[update_pb2.ParameterTransition]] = {}
    for transition in made:
        by_name.setdefault(transition.parameter, []).append(transition)
    lines = []
    for name, (first, *others) in by_name.items():
        group = f"[{first.group}]" if first.group and not others else ""
        line = f"{name}{group} {value(first.old_value)} → {value(first.new_value)}"
        if others:
            line += f" (+{len(others)} group{'s' if len(others) > 1 else ''})"
        lines.append(line)
    return lines


def changes(update: update_pb2.Update) -> list[str]:
    """Returns what an update changed and did, if it is in force, else what it asks for."""
    lines = transitions(update.applied.transitions) if update.HasField("applied") else []
    if not lines:
        lines = [change(asked) for asked in update.spec.changes]
    if not update.spec.HasField("action"):
        return lines
    led_to = result(update.applied.action_result) if update.HasField("applied") else ""
    return [*lines, ": ".join(part for part in (action(update.spec.action), led_to) if part)]


def result(of: update_pb2.ActionResult) -> str:
    """Returns what an action led to: a checkpoint, metrics; empty: there is nothing to say."""
    parts = [of.checkpoint] if of.checkpoint else []
    shown = sorted(of.metrics)[:_METRICS_SHOWN]
    parts += [f"{name} {fmt.number(of.metrics[name], 4)}" for name in shown]
    if len(of.metrics) > len(shown):
        parts.append(f"+{len(of.metrics) - len(shown)} more")
    return ", ".join(parts)


def when_due(
    spec: update_pb2.UpdateSpec, parameters: Iterable[parameter_pb2.ParameterSpec] = ()
) -> str:
    """Returns when an update takes effect; `parameters` tell at which kind of boundary."""
    boundary = _boundary(spec, parameters)
    if spec.apply_at.HasField("step"):
        due = f"at step {spec.apply_at.step}"
        return f"{due} or the next {boundary} boundary after it" if boundary else due
    return f"at the next {boundary} boundary" if boundary else "at the next boundary"


def waiting(
    update: update_pb2.Update, parameters: Iterable[parameter_pb2.ParameterSpec] = ()
) -> str:
    """Returns what an update waits for that its trainer has; empty: not said, or no more."""
    if update.state != update_pb2.UPDATE_STATE_DELIVERED:
        return ""
    boundary = _boundary(update.spec, parameters)
    parts = []
    if update.spec.apply_at.HasField("step"):
        parts.append(f"step {update.spec.apply_at.step}")
    if boundary:
        parts.append(f"the next {boundary} boundary")
    return f"waits for {' and '.join(parts)}" if parts else ""


def _boundary(
    spec: update_pb2.UpdateSpec, parameters: Iterable[parameter_pb2.ParameterSpec]
) -> str:
    """Returns at which kind of boundary an update applies as a whole; empty: at each."""
    of = {known.name: known.boundary for known in parameters}
    kinds = {of.get(change.parameter) for change in spec.changes}
    return next((name for kind, name in reversed(_BOUNDARIES.items()) if kind in kinds), "")


def latency(update: update_pb2.Update) -> str:
    """Returns the time from call to application.

    The trainer's host and the control plane have different clocks. An application lies between
    acceptance and settlement, both by the control plane's clock; where the trainer's clock says
    otherwise, it is wrong and the time to settlement is given, as the bound that it is.
    """
    if not update.HasField("applied") or not update.HasField("create_time"):
        return fmt.UNKNOWN
    called = seconds(update.create_time)
    settled = seconds(update.settle_time) - called if update.HasField("settle_time") else math.inf
    if update.applied.HasField("apply_time"):
        applied = seconds(update.applied.apply_time) - called
        if 0 <= applied <= settled:
            return fmt.span(applied)
    return fmt.UNKNOWN if math.isinf(settled) else f"≤ {fmt.span(max(0.0, settled))}"


def outcome(update: update_pb2.Update) -> str:
    """Returns why an update is not in force; empty if it is, as far as is known, or still open."""
    if update.rolled_back_by:
        return f"rolled back by revision {update.rolled_back_by}"
    match update.WhichOneof("outcome"):
        case "rejected":
            return update.rejected.message or update.rejected.reason
        case "expired":
            return update.expired.message
        case "cancelled":
            by = f"by {update.cancelled.principal}" if update.cancelled.principal else ""
            return ": ".join(part for part in (by, update.cancelled.reason) if part)
        case _:
            return "cancellation asked for" if update.cancel_requested else ""


def applied(update: update_pb2.Update) -> str:
    """Returns the line about an update that was put in force, and what has become of it since."""
    # 0 stands for a step that is not known.
    at = f"step {update.applied.step}" if update.applied.step else "an unknown step"
    words = f"APPLIED at {at}, {', '.join(changes(update))}, {latency(update)} after the call"
    since = outcome(update)
    return f"{words}; {since}" if since else words


def operation(name: parameter_pb2.Operation.ValueType) -> str:
    """Returns set for OPERATION_SET."""
    return parameter_pb2.Operation.Name(name).removeprefix("OPERATION_").lower()


def rails(spec: parameter_pb2.ParameterSpec) -> str:
    """Returns what the job's owner allows less than the parameter does; empty: nothing."""
    of = spec.guard_rails
    if of.frozen:
        return "frozen by the job's owner"
    parts = [f"owner's limits {limits(of.bounds)}"] if of.HasField("bounds") else []
    if of.allowed_principals:
        parts.append(f"only by {', '.join(of.allowed_principals)}")
    return "; ".join(parts)


def bounds(spec: parameter_pb2.ParameterSpec) -> str:
    """Returns the hard limits of a parameter: [0, 1), a | b; a dash if there are none."""
    return limits(spec.bounds)


def limits(of: parameter_pb2.Bounds) -> str:
    """Returns limits: [0, 1), a | b; a dash if there are none."""
    if of.allowed_texts:
        return " | ".join(of.allowed_texts)
    low, high = of.HasField("minimum"), of.HasField("maximum")
    if not low and not high:
        return fmt.UNKNOWN
    begin = f"{'(' if of.minimum_exclusive else '['}{fmt.number(of.minimum)}"
    end = f"{fmt.number(of.maximum)}{')' if of.maximum_exclusive else ']'}"
    return f"{begin if low else '(-∞'}, {end if high else '∞)'}"
