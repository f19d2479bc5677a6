"""Jobs, watches and metrics between protobuf and domain."""

from __future__ import annotations

from typing import TYPE_CHECKING

from control_plane.domain.errors import invalid
from control_plane.domain.job import Job, JobState, MetricPoint, Progress, SessionInfo, TrainerExit
from control_plane.domain.names import job_name
from control_plane.rpc.convert_parameter import spec, value
from control_plane.rpc.convert_update import ACTIONS_OUT, change, update
from control_plane.services.watch import WatchItem, WatchKind
from grpc_runtime.convert import (
    count_of,
    duration,
    micros_of,
    time_of,
    timestamp,
    timestamp_of_micros,
)
from midcourse.control.v1 import control_pb2, job_pb2

if TYPE_CHECKING:
    from control_plane.services.metrics import MetricSeries
    from control_plane.services.views import JobView

STATES = {
    job_pb2.JOB_STATE_PENDING: JobState.PENDING,
    job_pb2.JOB_STATE_RUNNING: JobState.RUNNING,
    job_pb2.JOB_STATE_STALLED: JobState.STALLED,
    job_pb2.JOB_STATE_PAUSED: JobState.PAUSED,
    job_pb2.JOB_STATE_LOST: JobState.LOST,
    job_pb2.JOB_STATE_FINISHED: JobState.FINISHED,
    job_pb2.JOB_STATE_FAILED: JobState.FAILED,
}
_STATES_OUT = {domain: proto for proto, domain in STATES.items()}
_WATCH_OUT = {
    WatchKind.SNAPSHOT: control_pb2.JOB_EVENT_TYPE_SNAPSHOT,
    WatchKind.CREATED: control_pb2.JOB_EVENT_TYPE_CREATED,
    WatchKind.MODIFIED: control_pb2.JOB_EVENT_TYPE_MODIFIED,
    WatchKind.DELETED: control_pb2.JOB_EVENT_TYPE_DELETED,
    WatchKind.PROGRESS: control_pb2.JOB_EVENT_TYPE_PROGRESS,
    WatchKind.BOOKMARK: control_pb2.JOB_EVENT_TYPE_BOOKMARK,
}


def progress_of(proto: job_pb2.Progress, field: str) -> Progress:
    """How far training has come.

    Raises:
        StatusError: INVALID_ARGUMENT, if a number or a time is none that can be.
    """
    given = proto.HasField
    # Most are given and not zero, and then nobody has to ask whether they are given.
    return Progress(
        count_of(proto.step, f"{field}.step"),
        proto.max_steps or (0 if given("max_steps") else None),
        proto.epoch or (0.0 if given("epoch") else None),
        proto.max_epochs or (0.0 if given("max_epochs") else None),
        proto.steps_per_second or (0.0 if given("steps_per_second") else None),
        micros_of(proto.step_time, f"{field}.step_time") if given("step_time") else None,
    )


def _progress(of: Progress) -> job_pb2.Progress:
    return job_pb2.Progress(
        step=of.step,
        max_steps=of.max_steps,
        epoch=of.epoch,
        max_epochs=of.max_epochs,
        steps_per_second=of.steps_per_second,
        step_time=timestamp_of_micros(of.step_time) if of.step_time is not None else None,
    )


def _metric(of: MetricPoint) -> job_pb2.MetricPoint:
    time = timestamp_of_micros(of.time)
    return job_pb2.MetricPoint(name=of.name, step=of.step, value=of.value, time=time)


def _session(of: SessionInfo) -> job_pb2.Session:
    return job_pb2.Session(
        epoch=of.epoch,
        instance_id=of.instance_id,
        host=of.host,
        trainer_pid=of.trainer_pid,
        agent_version=of.agent_version,
        connected=of.connected,
        connect_time=timestamp(of.connect_time),
        last_seen_time=timestamp(of.last_seen_time),
    )


def exit_of(proto: job_pb2.TrainerExit, field: str) -> TrainerExit:
    """How a training process ended."""
    return TrainerExit(
        proto.exit_code if proto.HasField("exit_code") else None,
        proto.signal if proto.HasField("signal") else None,
        proto.message,
        time_of(proto.time, f"{field}.time"),
    )


def _exit(of: TrainerExit) -> job_pb2.TrainerExit:
    return job_pb2.TrainerExit(
        exit_code=of.exit_code, signal=of.signal, message=of.message, time=timestamp(of.time)
    )


def _desired(of: Job) -> job_pb2.DesiredState:
    return job_pb2.DesiredState(
        revision=of.revision,
        parameters=[
            job_pb2.DesiredParameter(change=change(d.change), revision=d.revision)
            for d in of.desired
        ],
    )


def _effective(of: Job) -> job_pb2.EffectiveState:
    return job_pb2.EffectiveState(
        revision=of.settled_revision,
        parameters=[
            job_pb2.EffectiveParameter(
                parameter=e.parameter,
                group=e.group,
                value=value(e.value) if e.value is not None else None,
                revision=e.revision,
                step=e.step,
            )
            for e in of.effective
        ],
    )


def job(of: JobView, heartbeat_interval: float) -> job_pb2.Job:
    """A job as protobuf."""
    known = of.job
    return job_pb2.Job(
        name=job_name(known.id),
        uid=known.uid,
        labels=known.labels,
        method=known.method,
        state=_STATES_OUT[known.state],
        state_message=known.state_message,
        create_time=timestamp(known.create_time),
        update_time=timestamp(known.update_time),
        etag=known.etag,
        parameters=[spec(each) for each in known.parameters],
        actions=[ACTIONS_OUT[each] for each in known.actions],
        desired=_desired(known),
        effective=_effective(known),
        progress=_progress(of.progress) if of.progress is not None else None,
        metrics=[_metric(each) for each in of.metrics],
        session=_session(known.session) if known.session is not None else None,
        exit=_exit(known.exit) if known.exit is not None else None,
        heartbeat_interval=duration(heartbeat_interval) if known.session is not None else None,
        last_update=update(of.last_update) if of.last_update is not None else None,
        dropped_samples=of.dropped_samples,
    )


def watch_item(of: WatchItem, heartbeat_interval: float) -> control_pb2.WatchJobsResponse:
    """An item of a watch as protobuf."""
    proto = control_pb2.WatchJobsResponse(
        type=_WATCH_OUT[of.kind],
        position=write_position(of.position) if of.position is not None else "",
        update=update(of.update) if of.update is not None else None,
        time=timestamp(of.time) if of.time is not None else None,
    )
    if of.view is not None:
        proto.job.CopyFrom(job(of.view, heartbeat_interval))
    elif of.job_id:
        proto.job.CopyFrom(job_pb2.Job(name=job_name(of.job_id), uid=of.job_uid))
    return proto


def write_position(position: int) -> str:
    """A position of the record of events, opaque to callers."""
    return f"p{position:x}"


def read_position(text: str) -> int:
    """A position from a caller.

    Raises:
        Refusal: If it is none of ours.
    """
    try:
        if not text.startswith("p") or not 1 < len(text) <= 17:
            raise ValueError(text)
        return int(text[1:], 16)
    except ValueError:
        raise invalid(
            "position", f"got {text[:40]!r}, allowed: a position from a watch, or empty"
        ) from None


def series(of: MetricSeries) -> control_pb2.Series:
    """A series as protobuf."""
    stats = of.statistics
    return control_pb2.Series(
        name=of.name,
        steps=[s.step for s in of.samples],
        values=[s.value for s in of.samples],
        time_micros=[s.time for s in of.samples],
        statistics=control_pb2.SeriesStatistics(
            count=stats.count,
            non_finite_count=stats.non_finite_count,
            last=stats.last,
            minimum=stats.minimum,
            maximum=stats.maximum,
            mean=stats.mean,
            slope=stats.slope,
        ),
        reduced=of.reduced,
    )
