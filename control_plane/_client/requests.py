"""Requests out of Python values: pure, for a synchronous and an asynchronous client alike."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from typing import TypedDict

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from control_plane._client.names import job_name
from midcourse.control.v1 import control_pb2, update_pb2


class UpdateOptions(TypedDict, total=False):
    """Options of every call that changes a job.

    Attributes:
        at_step: First optimizer step (from 1) that is to use the new values; by default the next.
        max_step: Last optimizer step that may be the first to; past it the update expires.
        deadline: When the update expires, or in how long from now, by this host's clock.
        reason: Why, for people.
        force: Override soft guard rails.
        expected_revision: Accept only if this is the job's newest revision.
        request_id: Id of the request, the same for every try of it; by default a new one.
        validate_only: Check only; change nothing.
        wait: Return when the update is in force, and raise if it never will be.
        wait_timeout: Longest time to wait, in seconds; by default no limit.
    """

    at_step: int | None
    max_step: int | None
    deadline: datetime | timedelta | None
    reason: str
    force: bool
    expected_revision: int | None
    request_id: str | None
    validate_only: bool
    wait: bool
    wait_timeout: float | None


class BatchOptions(TypedDict, total=False):
    """Options of every call that changes many jobs; those of :class:`UpdateOptions` mean the same.

    Attributes:
        at_step: First optimizer step (from 1) that is to use the new values; by default the next.
        max_step: Last optimizer step that may be the first to; past it the update expires.
        deadline: When the update expires, or in how long from now, by this host's clock.
        reason: Why, for people.
        force: Override soft guard rails.
        request_id: Id of the request, the same for every try of it; by default a new one.
        best_effort: Send it to those that take it, instead of to none if one does not.
        validate_only: Check only; the answer says what would change on each job.
    """

    at_step: int | None
    max_step: int | None
    deadline: datetime | timedelta | None
    reason: str
    force: bool
    request_id: str | None
    best_effort: bool
    validate_only: bool


def update_request(
    job: str,
    changes: Iterable[update_pb2.Change],
    action: update_pb2.Action | None,
    options: UpdateOptions,
) -> control_pb2.UpdateParametersRequest:
    """Returns a request that is safe to repeat: it always has an id."""
    return control_pb2.UpdateParametersRequest(
        job=job_name(job),
        spec=_spec(changes, action, options),
        request_id=options.get("request_id") or str(uuid.uuid4()),
        expected_revision=options.get("expected_revision"),
        validate_only=options.get("validate_only", False),
    )


def batch_request(
    selector: str,
    jobs: Iterable[str],
    changes: Iterable[update_pb2.Change],
    action: update_pb2.Action | None,
    options: BatchOptions,
) -> control_pb2.BatchUpdateParametersRequest:
    """Returns a request that is safe to repeat: it always has an id."""
    return control_pb2.BatchUpdateParametersRequest(
        selector=selector,
        jobs=[job_name(job) for job in jobs],
        spec=_spec(changes, action, options),
        request_id=options.get("request_id") or str(uuid.uuid4()),
        best_effort=options.get("best_effort", False),
        validate_only=options.get("validate_only", False),
    )


def _spec(
    changes: Iterable[update_pb2.Change],
    action: update_pb2.Action | None,
    options: UpdateOptions | BatchOptions,
) -> update_pb2.UpdateSpec:
    spec = update_pb2.UpdateSpec(
        changes=changes,
        action=action,
        reason=options.get("reason", ""),
        force=options.get("force", False),
    )
    at_step, max_step = options.get("at_step"), options.get("max_step")
    if at_step is not None or max_step is not None:
        spec.apply_at.CopyFrom(update_pb2.ApplyAt(step=at_step, max_step=max_step))
    if (deadline := options.get("deadline")) is not None:
        spec.deadline.CopyFrom(timestamp(deadline))
    return spec


def batch_name(batch: str) -> str:
    """Returns ``batches/{batch}`` for a batch's number or its resource name."""
    return batch if batch.startswith("batches/") else f"batches/{batch}"


def watch_request(
    selector: str, job: str, position: str, progress_interval: float | None
) -> control_pb2.WatchJobsRequest:
    """Returns a request for a watch of jobs."""
    return control_pb2.WatchJobsRequest(
        selector=selector,
        name=job_name(job) if job else "",
        position=position,
        progress_interval=None if progress_interval is None else duration(progress_interval),
    )


def updates_request(
    job: str,
    *,
    states: Iterable[update_pb2.UpdateState.ValueType] = (),
    oldest_first: bool = False,
    page_size: int = 0,
    selector: str = "",
    author: str = "",
    start_time: datetime | timedelta | None = None,
    end_time: datetime | timedelta | None = None,
) -> control_pb2.ListUpdatesRequest:
    """Returns a request for the updates of a job, or, where its id is ``-``, of all."""
    return control_pb2.ListUpdatesRequest(
        parent=job_name(job),
        states=states,
        order=control_pb2.UPDATE_ORDER_OLDEST_FIRST
        if oldest_first
        else control_pb2.UPDATE_ORDER_UNSPECIFIED,
        page_size=page_size,
        selector=selector,
        author=author,
        start_time=None if start_time is None else timestamp(start_time),
        end_time=None if end_time is None else timestamp(end_time),
    )


def metrics_request(
    job: str,
    names: Sequence[str],
    *,
    first_step: int | None,
    last_step: int | None,
    start_time: datetime | None,
    end_time: datetime | None,
    last: int,
    max_points: int,
) -> control_pb2.QueryMetricsRequest:
    """Returns a request for the course of metrics."""
    request = control_pb2.QueryMetricsRequest(
        job=job_name(job),
        names=names,
        start_time=None if start_time is None else timestamp(start_time),
        end_time=None if end_time is None else timestamp(end_time),
        last=last,
        max_points=max_points,
    )
    if first_step is not None or last_step is not None:
        request.steps.CopyFrom(control_pb2.StepRange(first=first_step, last=last_step))
    return request


def duration(seconds: float) -> Duration:
    """Wraps a number of seconds."""
    wrapped = Duration()
    wrapped.FromNanoseconds(round(seconds * 1e9))
    return wrapped


def timestamp(when: datetime | timedelta) -> Timestamp:
    """Wraps a time, or a time from now; a time without zone is local, as Python has it."""
    wrapped = Timestamp()
    moment = datetime.now(UTC) + when if isinstance(when, timedelta) else when.astimezone(UTC)
    wrapped.FromDatetime(moment)
    return wrapped
