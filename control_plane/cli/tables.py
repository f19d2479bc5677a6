"""Tables, out of the API's messages."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.table import Table
from rich.text import Text

from control_plane.cli import describe
from control_plane.cli import format as fmt
from control_plane.cli.fitting import FittingTable
from control_plane.client import job_id
from midcourse.control.v1 import job_pb2, parameter_pb2, update_pb2

_JOB_STYLES = {
    job_pb2.JOB_STATE_PENDING: "dim",
    job_pb2.JOB_STATE_RUNNING: "green",
    job_pb2.JOB_STATE_STALLED: "yellow",
    job_pb2.JOB_STATE_PAUSED: "cyan",
    job_pb2.JOB_STATE_LOST: "yellow",
    job_pb2.JOB_STATE_FINISHED: "blue",
    job_pb2.JOB_STATE_FAILED: "red",
}
_UPDATE_STYLES = {
    update_pb2.UPDATE_STATE_PENDING: "yellow",
    update_pb2.UPDATE_STATE_DELIVERED: "yellow",
    update_pb2.UPDATE_STATE_APPLIED: "green",
    update_pb2.UPDATE_STATE_REJECTED: "red",
    update_pb2.UPDATE_STATE_EXPIRED: "magenta",
    update_pb2.UPDATE_STATE_CANCELLED: "dim",
}


def job_state(job: job_pb2.Job) -> Text:
    """Returns a job's state, coloured."""
    return Text(describe.job_state(job.state), style=_JOB_STYLES.get(job.state, ""))


def update_state(update: update_pb2.Update) -> Text:
    """Returns an update's state, coloured."""
    return Text(describe.update_state(update.state), style=_UPDATE_STYLES.get(update.state, ""))


def last_update(job: job_pb2.Job, now: float) -> str:
    """Returns the newest update of a job: #3 APPLIED 5 s ago."""
    if not job.HasField("last_update"):
        return fmt.UNKNOWN
    update = job.last_update
    when = "settle_time" if update.HasField("settle_time") else "create_time"
    return (
        f"#{update.revision} {describe.update_state(update.state)}"
        f" {describe.age(update, when, now)}"
    )


def jobs(listing: Iterable[job_pb2.Job], now: float) -> FittingTable:
    """Returns the table of jobs."""
    table = FittingTable(
        *("JOB", "METHOD", "STATE", "STEP", "LOSS", "LR", "LAST UPDATE", "SEEN"),
        right=("STEP", "LOSS", "LR"),
        wrap={"JOB": 20, "LAST UPDATE": 12},
        leave_out=("SEEN", "METHOD", "LAST UPDATE", "LOSS", "LR"),
    )
    for job in listing:
        table.add_row(
            job_id(job.name),
            job.method or fmt.UNKNOWN,
            job_state(job),
            describe.step(job),
            describe.metric(job, "loss"),
            describe.learning_rate(job),
            last_update(job, now),
            describe.age(job.session, "last_seen_time", now),
        )
    return table


def live(listing: Iterable[job_pb2.Job], now: float) -> FittingTable:
    """Returns the table of `midcourse watch`."""
    table = FittingTable(
        *("JOB", "STATE", "STEP", "LOSS", "LR", "STEPS/S", "LAST UPDATE"),
        right=("STEP", "LOSS", "LR", "STEPS/S"),
        wrap={"JOB": 20, "LAST UPDATE": 12},
        leave_out=("LAST UPDATE", "STEPS/S", "LOSS", "LR"),
    )
    for job in listing:
        table.add_row(
            job_id(job.name),
            job_state(job),
            describe.step(job),
            describe.metric(job, "loss"),
            describe.learning_rate(job),
            describe.speed(job),
            last_update(job, now),
        )
    return table


def facts(job: job_pb2.Job, now: float) -> Table:
    """Returns what is known about one job, line by line."""
    table = Table(box=None, pad_edge=False, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    state = job_state(job)
    if job.state_message:
        state.append(f" ({job.state_message})", style="default")
    speed = describe.speed(job)
    table.add_row("job", job_id(job.name))
    table.add_row("state", state)
    table.add_row("method", job.method or fmt.UNKNOWN)
    table.add_row("labels", _labels(job))
    table.add_row(
        "step", describe.step(job) + ("" if speed == fmt.UNKNOWN else f" at {speed} steps/s")
    )
    table.add_row("created", describe.age(job, "create_time", now))
    table.add_row("trainer", _trainer(job, now))
    if job.HasField("exit"):
        table.add_row("exit", _exit(job.exit))
    table.add_row("last update", _update_words(job, now))
    if job.actions:
        table.add_row("actions", ", ".join(_action(kind) for kind in job.actions))
    if job.dropped_samples:
        table.add_row("dropped", f"{job.dropped_samples} samples on the way here")
    return table


def parameters(job: job_pb2.Job) -> FittingTable:
    """Returns the table of what can be changed live in a job."""
    table = FittingTable(
        *("PARAMETER", "VALUE", "ASKED FOR", "ALLOWED", "AT", "WAYS"),
        right=("VALUE",),
        wrap={"ASKED FOR": 14, "ALLOWED": 8, "WAYS": 16},
        leave_out=("AT", "ASKED FOR"),
    )
    for spec in job.parameters:
        confirmed = describe.effective(job, spec.name)
        known = spec.current_value if confirmed is None else confirmed.value
        if spec.name == describe.LEARNING_RATE:
            shown = describe.learning_rate(job)
            shown = describe.value(known) if shown == fmt.UNKNOWN else shown
        else:
            shown = describe.value(known)
        boundary = parameter_pb2.Boundary.Name(spec.boundary).removeprefix("BOUNDARY_").lower()
        table.add_row(
            spec.name,
            shown,
            _asked(job, spec.name),
            describe.bounds(spec),
            boundary,
            f"not now: {spec.unavailable_reason}"
            if spec.unavailable_reason
            else describe.rails(spec)
            or " ".join(describe.operation(operation) for operation in spec.operations),
        )
    return table


def metrics(job: job_pb2.Job) -> FittingTable:
    """Returns the table of the newest values of a job's metrics."""
    table = FittingTable("METRIC", "VALUE", "STEP", right=("VALUE", "STEP"))
    for metric in job.metrics:
        table.add_row(metric.name, fmt.number(metric.value), str(metric.step))
    return table


def history(
    updates: Iterable[update_pb2.Update],
    now: float,
    parameters: Sequence[parameter_pb2.ParameterSpec] = (),
    *,
    of_all: bool = False,
) -> FittingTable:
    """Returns the table of updates.

    Args:
        updates: The updates.
        now: Seconds since 1970.
        parameters: Those of their job, which tell what open ones wait for.
        of_all: They are of several jobs.
    """
    table = FittingTable(
        *(("JOB",) if of_all else ()),
        *("REV", "STATE", "CHANGE", "STEP", "LATENCY", "AUTHOR", "WHEN", "REASON"),
        right=("REV", "STEP", "LATENCY"),
        wrap={"JOB": 20, "CHANGE": 15, "REASON": 12},
        leave_out=("LATENCY", "WHEN", "AUTHOR") if of_all else ("AUTHOR", "LATENCY", "WHEN"),
        say_so=True,
    )
    for update in updates:
        said = describe.outcome(update) or describe.waiting(update, parameters)
        reason = Text(update.spec.reason or ("" if said else fmt.UNKNOWN))
        if said:
            reason.append(("\n" if reason.plain else "") + said, style="italic")
        table.add_row(
            *((job_id(update.name),) if of_all else ()),
            str(update.revision),
            update_state(update),
            "\n".join(describe.changes(update)),
            str(update.applied.step) if update.applied.step else fmt.UNKNOWN,
            describe.latency(update),
            update.author or fmt.UNKNOWN,
            describe.age(update, "create_time", now),
            reason,
        )
    return table


def _labels(job: job_pb2.Job) -> str:
    labels = [f"{key}={value}" for key, value in sorted(job.labels.items())]
    return ", ".join(labels) or fmt.UNKNOWN


def _trainer(job: job_pb2.Job, now: float) -> str:
    if not job.HasField("session"):
        return "none yet"
    session = job.session
    seen = describe.age(session, "last_seen_time", now)
    where = f"process {session.trainer_pid} on {session.host or 'an unnamed host'}"
    return f"{where}, {'connected' if session.connected else 'not connected'}, heard of {seen}"


def _action(kind: update_pb2.ActionKind.ValueType) -> str:
    return update_pb2.ActionKind.Name(kind).removeprefix("ACTION_KIND_").replace("_", " ").lower()


def _exit(ended: job_pb2.TrainerExit) -> str:
    if ended.message:
        return ended.message
    words = []
    if ended.HasField("exit_code"):
        words.append(f"exit code {ended.exit_code}")
    if ended.HasField("signal"):
        words.append(f"signal {ended.signal}")
    return ", ".join(words) or "how is unknown"


def _update_words(job: job_pb2.Job, now: float) -> str:
    summary = last_update(job, now)
    if not job.HasField("last_update"):
        return summary
    waits = describe.waiting(job.last_update, job.parameters)
    words = f"{summary}: {', '.join(describe.changes(job.last_update))}"
    return f"{words}; {waits}" if waits else words


def _asked(job: job_pb2.Job, parameter: str) -> str:
    asked = [
        f"{describe.change(desired.change).removeprefix(parameter).lstrip()} (#{desired.revision})"
        for desired in job.desired.parameters
        if desired.change.parameter == parameter
    ]
    return "\n".join(asked) or fmt.UNKNOWN
