"""ControlPlaneService: the API for ops tools and backend services."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, TypeVar, cast

from control_plane.domain import selector
from control_plane.domain.errors import invalid
from control_plane.domain.names import parse_job, parse_update
from control_plane.rpc import convert_job, convert_update
from control_plane.rpc.batch_servicer import BatchMethods
from control_plane.rpc.policies import scope_now
from control_plane.rpc.streaming import send_all
from control_plane.services.history import HistoryQuery
from control_plane.services.metrics import MetricsQuery
from control_plane.services.telemetry import EPOCH
from control_plane.services.updates import MAX_WAIT, Submission
from grpc_runtime.auth import current_principal, current_trace_parent
from grpc_runtime.convert import MAX_COUNT, seconds_of, time_of
from grpc_runtime.paging import page_size, read_token, write_token
from midcourse.control.v1 import control_pb2 as pb

if TYPE_CHECKING:
    from datetime import datetime

    import grpc

    from control_plane.services.batches import BatchService
    from control_plane.services.history import HistoryService
    from control_plane.services.jobs import JobService
    from control_plane.services.metrics import MetricsService
    from control_plane.services.updates import UpdateService
    from control_plane.services.views import JobView
    from control_plane.services.watch import WatchService

_D = TypeVar("_D")

ALL_JOBS = "jobs/-"
"""What stands for the parent of the updates of all jobs."""

_CANCEL_SECONDS = 5.0
_MIN_PROGRESS_SECONDS = 0.1
_MAX_POINTS = 100_000
# Time that an answer needs on its way back, before the caller's deadline.
_ANSWER_SECONDS = 0.1


@dataclass(frozen=True, slots=True)
class UseCases:
    """What the servicer calls."""

    jobs: JobService
    updates: UpdateService
    watches: WatchService
    metrics: MetricsService
    batches: BatchService
    history: HistoryService
    heartbeat_interval: float
    watch_patience: float


class ControlPlaneServicer(BatchMethods):
    """Converts requests, calls one use case each, converts the answers."""

    def __init__(self, use_cases: UseCases) -> None:
        """Takes the use cases."""
        self._jobs = use_cases.jobs
        self._updates = use_cases.updates
        self._watches = use_cases.watches
        self._metrics = use_cases.metrics
        self._batches = use_cases.batches
        self._history = use_cases.history
        self._heartbeat_interval = use_cases.heartbeat_interval
        self._watch_patience = use_cases.watch_patience

    def _job(self, view: JobView) -> Any:
        return convert_job.job(view, self._heartbeat_interval)

    async def CreateJob(
        self, request: pb.CreateJobRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> pb.CreateJobResponse:
        """Makes a job known before its trainer shows itself."""
        view = await self._jobs.create(
            request.job_id,
            dict(request.labels),
            request.method,
            validate_only=request.validate_only,
        )
        return pb.CreateJobResponse(job=self._job(view))

    async def GetJob(
        self, request: pb.GetJobRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> pb.GetJobResponse:
        """Returns a job."""
        view = await self._jobs.get(parse_job(request.name, "name"))
        return pb.GetJobResponse(job=self._job(view))

    async def ListJobs(
        self, request: pb.ListJobsRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> pb.ListJobsResponse:
        """Lists jobs in the order of their names."""
        states = _known(request.states, convert_job.STATES, "states")
        query = f"jobs|{request.selector}|{sorted(request.states)}"
        after = read_token(request.page_token, query)
        page = await self._jobs.list(
            selector.parse(request.selector),
            states,
            after=str(after or ""),
            limit=page_size(request.page_size),
        )
        return pb.ListJobsResponse(
            jobs=[self._job(view) for view in page.jobs],
            next_page_token=write_token(page.next_after, query),
        )

    async def UpdateJob(
        self, request: pb.UpdateJobRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> pb.UpdateJobResponse:
        """Changes a job's labels."""
        view = await self._jobs.label(
            parse_job(request.name, "name"),
            dict(request.set_labels),
            tuple(request.remove_labels),
            request.etag,
            validate_only=request.validate_only,
        )
        return pb.UpdateJobResponse(job=self._job(view))

    async def DeleteJob(
        self, request: pb.DeleteJobRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> pb.DeleteJobResponse:
        """Deletes a job with its updates and metrics."""
        await self._jobs.delete(
            parse_job(request.name, "name"), request.etag, validate_only=request.validate_only
        )
        return pb.DeleteJobResponse()

    async def WatchJobs(  # type: ignore[override]  # the stub knows generators only, not writers
        self, request: pb.WatchJobsRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> None:
        """Streams jobs as they change."""
        interval = None
        if request.HasField("progress_interval"):
            asked = seconds_of(request.progress_interval, "progress_interval")
            interval = max(asked, _MIN_PROGRESS_SECONDS)
        items = self._watches.watch(
            selector.parse(request.selector),
            job_id=parse_job(request.name, "name") if request.name else "",
            position=convert_job.read_position(request.position) if request.position else None,
            progress_interval=interval,
            scope=scope_now(),
        )
        to_proto = partial(convert_job.watch_item, heartbeat_interval=self._heartbeat_interval)
        await send_all(context, items, to_proto, patience=self._watch_patience)

    async def UpdateParameters(
        self, request: pb.UpdateParametersRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> pb.UpdateParametersResponse:
        """Asks for a change of a running job."""
        update = await self._updates.submit(
            Submission(
                job_id=parse_job(request.job, "job"),
                spec=convert_update.spec_of(request.spec),
                author=current_principal().name,
                trace_parent=current_trace_parent(),
                request_id=request.request_id,
                expected_revision=request.expected_revision
                if request.HasField("expected_revision")
                else None,
                validate_only=request.validate_only,
            )
        )
        return pb.UpdateParametersResponse(update=convert_update.update(update))

    async def GetUpdate(
        self, request: pb.GetUpdateRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> pb.GetUpdateResponse:
        """Returns an update."""
        update = await self._updates.get(*parse_update(request.name, "name"))
        return pb.GetUpdateResponse(update=convert_update.update(update))

    async def ListUpdates(
        self, request: pb.ListUpdatesRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> pb.ListUpdatesResponse:
        """Lists updates of a job, or of all."""
        asked = _history_query(request)
        # What is asked for without where to begin, in one text that stays the same.
        what = pb.ListUpdatesRequest()
        what.CopyFrom(request)
        what.ClearField("page_token")
        what.ClearField("page_size")
        query = f"updates|{what.SerializeToString(deterministic=True).hex()}"
        beyond = read_token(request.page_token, query)
        limit = page_size(request.page_size)
        if request.parent == ALL_JOBS:
            found = await self._history.list(
                asked, beyond=convert_update.read_place(beyond), limit=limit
            )
            return pb.ListUpdatesResponse(
                updates=[convert_update.update(update) for update in found.updates],
                next_page_token=write_token(convert_update.write_place(found.next_beyond), query),
            )
        page = await self._updates.list(
            parse_job(request.parent, "parent"),
            asked,
            beyond=beyond if isinstance(beyond, int) else None,
            limit=limit,
        )
        return pb.ListUpdatesResponse(
            updates=[convert_update.update(update) for update in page.updates],
            next_page_token=write_token(page.next_beyond, query),
            lineage=[
                pb.LineageSpan(
                    instance_id=each.instance_id,
                    first_step=each.first_step,
                    last_step=each.last_step,
                )
                for each in page.lineage
            ],
        )

    async def WaitUpdate(
        self, request: pb.WaitUpdateRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> pb.WaitUpdateResponse:
        """Returns an update once it is settled, or as it stands when the time is up."""
        asked = MAX_WAIT
        if request.HasField("timeout"):
            asked = seconds_of(request.timeout, "timeout")
        job_id, revision = parse_update(request.name, "name")
        update = await self._updates.wait(job_id, revision, _within_call(asked, context))
        return pb.WaitUpdateResponse(update=convert_update.update(update))

    async def CancelUpdate(
        self, request: pb.CancelUpdateRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> pb.CancelUpdateResponse:
        """Withdraws an update that is not in force yet."""
        asked = _CANCEL_SECONDS
        if request.HasField("timeout"):
            asked = seconds_of(request.timeout, "timeout")
        job_id, revision = parse_update(request.name, "name")
        update = await self._updates.cancel(
            job_id,
            revision,
            current_principal().name,
            request.reason,
            _within_call(asked, context),
        )
        return pb.CancelUpdateResponse(update=convert_update.update(update))

    async def QueryMetrics(
        self, request: pb.QueryMetricsRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> pb.QueryMetricsResponse:
        """Returns the course of metrics."""
        series = await self._metrics.query(_metrics_query(request))
        return pb.QueryMetricsResponse(series=[convert_job.series(each) for each in series])


def _metrics_query(request: pb.QueryMetricsRequest) -> MetricsQuery:
    if request.last < 0:
        raise invalid("last", f"got {request.last}, allowed: 0 (for all) or more")
    points = request.max_points or 1_000
    if not 4 <= points <= _MAX_POINTS:
        raise invalid("max_points", f"got {points}, allowed: 4 to {_MAX_POINTS}, or 0 for 1000")

    def micros(name: Literal["start_time", "end_time"]) -> int | None:
        if not request.HasField(name):
            return None
        return (time_of(getattr(request, name), name) - EPOCH) // timedelta(microseconds=1)

    steps = request.steps
    return MetricsQuery(
        job_id=parse_job(request.job, "job"),
        names=tuple(request.names),
        # No step is larger than what can be stored.
        first_step=min(steps.first, MAX_COUNT) if steps.HasField("first") else None,
        last_step=min(steps.last, MAX_COUNT) if steps.HasField("last") else None,
        start_time=micros("start_time"),
        end_time=micros("end_time"),
        last=request.last or None,
        max_points=points,
    )


def _history_query(request: pb.ListUpdatesRequest) -> HistoryQuery:
    def time(name: Literal["start_time", "end_time"]) -> datetime | None:
        return time_of(getattr(request, name), name) if request.HasField(name) else None

    if request.selector and request.parent != ALL_JOBS:
        raise invalid("selector", f"got one with one job, allowed: with {ALL_JOBS!r}")
    return HistoryQuery(
        selector=selector.parse(request.selector),
        states=frozenset(_known(request.states, convert_update.STATES, "states")),
        author=request.author,
        start=time("start_time"),
        end=time("end_time"),
        newest_first=_newest_first(request.order),
        scope=scope_now(),
    )


def _newest_first(order: pb.UpdateOrder.ValueType) -> bool:
    if order not in (pb.UPDATE_ORDER_UNSPECIFIED, pb.UPDATE_ORDER_OLDEST_FIRST):
        raise invalid("order", f"got {order}, allowed: 0 (newest first), 1 (oldest first)")
    return order == pb.UPDATE_ORDER_UNSPECIFIED


def _known(values: Any, table: Mapping[Any, _D], field: str) -> list[_D]:
    """Enum values of a request in the domain's terms.

    Raises:
        Refusal: If one is not known.
    """
    for value in values:
        if value not in table:
            raise invalid(field, f"got {value}, allowed: {min(table)} to {max(table)}")
    return [table[value] for value in values]


def _within_call(seconds: float, context: grpc.aio.ServicerContext[Any, Any]) -> float:
    """The seconds asked for, cut so that the answer comes before the call's deadline."""
    # None without a deadline, whatever the stub says.
    left = cast("float | None", context.time_remaining())
    return seconds if left is None else min(seconds, max(0.0, left - _ANSWER_SECONDS))
