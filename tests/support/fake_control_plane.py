"""A control plane in memory, behind a real gRPC server: for tests of what calls one.

It answers as the API promises, with as little behaviour as its callers need; what the control
plane itself does is tested on the control plane.
"""

from __future__ import annotations

import itertools
import math
import queue
import threading
import time
from collections.abc import Iterator
from concurrent import futures
from typing import Any, Self

import grpc
from grpc_status import rpc_status

from grpc_runtime.errors import FieldViolation, StatusError, to_proto
from midcourse.control.v1 import control_pb2 as pb
from midcourse.control.v1 import control_pb2_grpc, job_pb2, parameter_pb2, update_pb2

BEGIN = 1_750_000_000.0
LEARNING_RATE = parameter_pb2.ParameterSpec(
    name="learning_rate",
    kind=parameter_pb2.PARAMETER_KIND_NUMBER,
    bounds=parameter_pb2.Bounds(minimum=0.0),
    boundary=parameter_pb2.BOUNDARY_STEP,
    operations=[
        parameter_pb2.OPERATION_SET,
        parameter_pb2.OPERATION_HOLD,
        parameter_pb2.OPERATION_MULTIPLY,
        parameter_pb2.OPERATION_RELEASE,
    ],
    groups=["0", "1"],
    current_value=parameter_pb2.Value(number=2e-5),
    description="Learning rate of the next step.",
)


def make_job(name: str, **fields: Any) -> job_pb2.Job:
    """A running SFT job with one live parameter, a step and two metrics."""
    job = job_pb2.Job(
        name=f"jobs/{name}",
        uid=f"uid-{name}",
        method="sft",
        state=job_pb2.JOB_STATE_RUNNING,
        etag="1",
        parameters=[LEARNING_RATE],
        labels={"team": "nlp"},
    )
    job.create_time.FromSeconds(int(BEGIN))
    job.progress.step = 120
    job.progress.max_steps = 1000
    job.progress.steps_per_second = 3.25
    job.session.connected = True
    job.session.host = "gpu-01"
    job.session.trainer_pid = 4242
    job.session.last_seen_time.GetCurrentTime()
    job.metrics.add(name="loss", step=120, value=1.2345678)
    job.metrics.add(name="learning_rate", step=120, value=2e-5)
    job.actions.extend(
        kind
        for kind in update_pb2.ActionKind.values()
        if kind not in (update_pb2.ACTION_KIND_UNSPECIFIED, update_pb2.ACTION_KIND_ROLL_BACK)
    )
    job.effective.parameters.add(parameter="learning_rate", value=parameter_pb2.Value(number=2e-5))
    job.MergeFrom(job_pb2.Job(**fields))
    return job


class FakeControlPlane(control_pb2_grpc.ControlPlaneServiceServicer):
    """Jobs, updates and metrics in dictionaries.

    Attributes:
        jobs: By resource name.
        updates: By the job's resource name, oldest first.
        series: By the job's resource name.
        lineage: What every job's weights went through.
        settle_as: What becomes of accepted updates at once; PENDING leaves them open.
        calls: Every request, by method name, in order.
        authorization: What the last call of each method had in its metadata under that key.
        next_step: Where updates are applied.
        script: What happens as soon as somebody watches: the arguments of `publish`, or None for
            a stream that ends.

    """

    def __init__(self) -> None:
        self.jobs: dict[str, job_pb2.Job] = {}
        self.updates: dict[str, list[update_pb2.Update]] = {}
        self.series: dict[str, list[pb.Series]] = {}
        self.lineage: list[pb.LineageSpan] = []
        self.settle_as = update_pb2.UPDATE_STATE_APPLIED
        self.calls: list[tuple[str, Any]] = []
        self.authorization: dict[str, Any] = {}
        self.page_size = 2
        self.next_step = 121
        self.script: list[tuple[Any, job_pb2.Job, update_pb2.Update | None] | None] = []
        self._failures: dict[str, list[StatusError]] = {}
        self._watches: list[queue.SimpleQueue[pb.WatchJobsResponse | StatusError | None]] = []
        self._events: list[pb.WatchJobsResponse] = []
        self._changed = threading.Condition()
        self._server: grpc.Server | None = None
        self.address = ""

    # What tests do

    def __enter__(self) -> Self:
        return self.start("127.0.0.1:0")

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self, address: str) -> Self:
        self._server = grpc.server(
            futures.ThreadPoolExecutor(max_workers=8), options=[("grpc.so_reuseport", 0)]
        )
        control_pb2_grpc.add_ControlPlaneServiceServicer_to_server(self, self._server)
        port = self._server.add_insecure_port(address)
        self.address = address if address.startswith("unix:") else f"127.0.0.1:{port}"
        self._server.start()
        return self

    def stop(self) -> None:
        self.break_watches(None)
        assert self._server is not None
        self._server.stop(grace=None).wait(10)

    def add(self, job: job_pb2.Job) -> job_pb2.Job:
        self.jobs[job.name] = job
        self.updates.setdefault(job.name, [])
        return job

    def fail(self, method: str, *errors: StatusError) -> None:
        """Makes the next calls of a method fail."""
        self._failures.setdefault(method, []).extend(errors)

    def publish(
        self,
        kind: pb.JobEventType.ValueType,
        job: job_pb2.Job,
        update: update_pb2.Update | None = None,
    ) -> None:
        """Sends an event to every watch, and remembers it for those that come back."""
        event = pb.WatchJobsResponse(type=kind, job=job, update=update)
        event.time.GetCurrentTime()
        with self._changed:
            event.position = str(len(self._events) + 1)
            self._events.append(event)
            for watch in self._watches:
                watch.put(event)

    def break_watches(self, error: StatusError | None) -> None:
        """Ends all streams: with an error, or None for a plain end."""
        with self._changed:
            for watch in self._watches:
                watch.put(error)

    def settle(self, update: update_pb2.Update, state: update_pb2.UpdateState.ValueType) -> None:
        with self._changed:
            update.state = state
            update.settle_time.GetCurrentTime()
            if state == update_pb2.UPDATE_STATE_APPLIED:
                update.applied.step = self.next_step
                update.applied.apply_time.FromNanoseconds(
                    update.create_time.ToNanoseconds() + 1_600_000
                )
                result = update.applied.action_result
                match update.spec.action.WhichOneof("kind"):
                    case "save_checkpoint" | "stop":
                        result.checkpoint = f"/runs/checkpoint-{self.next_step - 1}"
                    case "evaluate":
                        result.metrics.update({"eval_loss": 1.25, "eval_runtime": 0.5})
                    case _:
                        update.applied.ClearField("action_result")
                for change in update.spec.changes:
                    transition = update.applied.transitions.add(parameter=change.parameter)
                    transition.old_value.number = 2e-5
                    transition.new_value.number = change.set.value.number or 1e-5
            elif state == update_pb2.UPDATE_STATE_REJECTED:
                update.rejected.reason = "NO_SCALE"
                update.rejected.message = "the learning rate is 0 here; use mode hold"
            elif state == update_pb2.UPDATE_STATE_EXPIRED:
                update.expired.cause = update_pb2.EXPIRY_CAUSE_DEADLINE
                update.expired.message = "its deadline passed"
            elif state == update_pb2.UPDATE_STATE_CANCELLED:
                update.cancelled.principal = "ops"
            self._changed.notify_all()

    # The service

    def CreateJob(self, request: pb.CreateJobRequest, context: Any) -> pb.CreateJobResponse:
        self._begin("CreateJob", request, context)
        if f"jobs/{request.job_id}" in self.jobs:
            self._abort(context, grpc.StatusCode.ALREADY_EXISTS, "JOB_EXISTS", "there is one")
        job = make_job(request.job_id, method=request.method, labels=dict(request.labels))
        return pb.CreateJobResponse(job=self.add(job))

    def GetJob(self, request: pb.GetJobRequest, context: Any) -> pb.GetJobResponse:
        self._begin("GetJob", request, context)
        return pb.GetJobResponse(job=self._job(request.name, context))

    def ListJobs(self, request: pb.ListJobsRequest, context: Any) -> pb.ListJobsResponse:
        self._begin("ListJobs", request, context)
        jobs = [
            job
            for _, job in sorted(self.jobs.items())
            if not request.states or job.state in request.states
        ]
        if request.selector:
            key, _, value = request.selector.partition("=")
            jobs = [job for job in jobs if job.labels.get(key) == value]
        page, token = self._page(jobs, request.page_token)
        return pb.ListJobsResponse(jobs=page, next_page_token=token)

    def UpdateJob(self, request: pb.UpdateJobRequest, context: Any) -> pb.UpdateJobResponse:
        self._begin("UpdateJob", request, context)
        job = self._job(request.name, context)
        job.labels.update(request.set_labels)
        return pb.UpdateJobResponse(job=job)

    def DeleteJob(self, request: pb.DeleteJobRequest, context: Any) -> pb.DeleteJobResponse:
        self._begin("DeleteJob", request, context)
        job = self._job(request.name, context)
        if job.session.connected:
            self._abort(
                context,
                grpc.StatusCode.FAILED_PRECONDITION,
                "SESSION_LIVE",
                "the job has a live session; stop it first",
            )
        if not request.validate_only:
            del self.jobs[request.name]
        return pb.DeleteJobResponse()

    def WatchJobs(
        self, request: pb.WatchJobsRequest, context: Any
    ) -> Iterator[pb.WatchJobsResponse]:
        self._begin("WatchJobs", request, context)
        watch: queue.SimpleQueue[pb.WatchJobsResponse | StatusError | None] = queue.SimpleQueue()
        with self._changed:
            if request.position:
                for event in self._events[int(request.position) :]:
                    watch.put(event)
            else:
                for job in self.jobs.values():
                    watch.put(pb.WatchJobsResponse(type=pb.JOB_EVENT_TYPE_SNAPSHOT, job=job))
                bookmark = pb.WatchJobsResponse(type=pb.JOB_EVENT_TYPE_BOOKMARK)
                bookmark.position = str(len(self._events))
                watch.put(bookmark)
            self._watches.append(watch)
        for happening in self.script:
            if happening is None:
                self.break_watches(None)
            else:
                self.publish(*happening)
        context.add_callback(lambda: watch.put(None))
        while True:
            item = watch.get()
            if isinstance(item, StatusError):
                context.abort_with_status(rpc_status.to_status(to_proto(item)))
            elif item is None:
                return
            elif not request.name or item.job.name in ("", request.name):
                yield item

    def _elsewhere(self, request: Any, context: Any) -> Any:
        """What is only tested on the control plane itself."""
        context.abort(grpc.StatusCode.UNIMPLEMENTED, "not faked")

    BatchUpdateParameters = GetBatch = ListBatches = WatchBatch = CancelBatch = _elsewhere

    def UpdateParameters(
        self, request: pb.UpdateParametersRequest, context: Any
    ) -> pb.UpdateParametersResponse:
        self._begin("UpdateParameters", request, context)
        job = self._job(request.job, context)
        updates = self.updates[job.name]
        for known in updates:
            if request.request_id and known.request_id == request.request_id:
                return pb.UpdateParametersResponse(update=known)
        if request.HasField("expected_revision") and request.expected_revision != len(updates):
            self._abort(
                context,
                grpc.StatusCode.ABORTED,
                "REVISION_CONFLICT",
                f"expected revision {request.expected_revision}, the newest is {len(updates)}",
            )
        for index, change in enumerate(request.spec.changes):
            self._check(index, change, request, context)
        kind = request.spec.action.WhichOneof("kind")
        if kind and update_pb2.ActionKind.Value(f"ACTION_KIND_{kind.upper()}") not in job.actions:
            self._abort(
                context,
                grpc.StatusCode.INVALID_ARGUMENT,
                "OPERATION_UNSUPPORTED",
                f"spec.action: got {kind}, which this job does not offer",
                violations=[FieldViolation("spec.action", f"got {kind}")],
            )
        update = update_pb2.Update(
            name=f"{job.name}/updates/{len(updates) + 1}",
            revision=len(updates) + 1,
            spec=request.spec,
            author="ops",
            request_id=request.request_id,
            state=update_pb2.UPDATE_STATE_PENDING,
        )
        update.create_time.FromNanoseconds(time.time_ns() - 5_000_000)
        if not request.validate_only:
            updates.append(update)
            job.last_update.CopyFrom(update)
            if self.settle_as != update_pb2.UPDATE_STATE_PENDING:
                self.settle(update, self.settle_as)
        return pb.UpdateParametersResponse(update=update)

    def GetUpdate(self, request: pb.GetUpdateRequest, context: Any) -> pb.GetUpdateResponse:
        self._begin("GetUpdate", request, context)
        return pb.GetUpdateResponse(update=self._update(request.name, context))

    def ListUpdates(self, request: pb.ListUpdatesRequest, context: Any) -> pb.ListUpdatesResponse:
        self._begin("ListUpdates", request, context)
        of_all = request.parent == "jobs/-"
        jobs = list(self.jobs) if of_all else [self._job(request.parent, context).name]
        updates = [
            update
            for job in jobs
            for update in self.updates[job]
            if not request.states or update.state in request.states
        ]
        if request.order != pb.UPDATE_ORDER_OLDEST_FIRST:
            updates.reverse()
        page, token = self._page(updates, request.page_token)
        return pb.ListUpdatesResponse(updates=page, next_page_token=token, lineage=self.lineage)

    def WaitUpdate(self, request: pb.WaitUpdateRequest, context: Any) -> pb.WaitUpdateResponse:
        self._begin("WaitUpdate", request, context)
        update = self._update(request.name, context)
        seconds = request.timeout.seconds + request.timeout.nanos / 1e9
        with self._changed:
            self._changed.wait_for(lambda: update.HasField("settle_time"), timeout=seconds)
        return pb.WaitUpdateResponse(update=update)

    def CancelUpdate(
        self, request: pb.CancelUpdateRequest, context: Any
    ) -> pb.CancelUpdateResponse:
        self._begin("CancelUpdate", request, context)
        update = self._update(request.name, context)
        if update.HasField("settle_time"):
            self._abort(
                context,
                grpc.StatusCode.FAILED_PRECONDITION,
                "UPDATE_SETTLED",
                f"{update.name} is settled already",
            )
        if update.state == update_pb2.UPDATE_STATE_DELIVERED:
            update.cancel_requested = True
        else:
            self.settle(update, update_pb2.UPDATE_STATE_CANCELLED)
        return pb.CancelUpdateResponse(update=update)

    def QueryMetrics(
        self, request: pb.QueryMetricsRequest, context: Any
    ) -> pb.QueryMetricsResponse:
        self._begin("QueryMetrics", request, context)
        job = self._job(request.job, context)
        answer = pb.QueryMetricsResponse()
        for series in self.series.get(job.name, []):
            if not request.names or series.name in request.names:
                answer.series.append(series)
                if request.last:
                    kept = answer.series[-1]
                    for column in (kept.steps, kept.values, kept.time_micros):
                        del column[: -request.last]
        return answer

    def _begin(self, method: str, request: Any, context: Any) -> None:
        copy = type(request)()
        copy.CopyFrom(request)
        self.calls.append((method, copy))
        self.authorization[method] = dict(context.invocation_metadata()).get("authorization")
        if waiting := self._failures.get(method):
            context.abort_with_status(rpc_status.to_status(to_proto(waiting.pop(0))))

    def _abort(
        self, context: Any, code: grpc.StatusCode, reason: str, message: str, **details: Any
    ) -> None:
        error = StatusError(code, message, reason=reason, domain="midcourse.control", **details)
        context.abort_with_status(rpc_status.to_status(to_proto(error)))

    def _job(self, name: str, context: Any) -> job_pb2.Job:
        if name not in self.jobs:
            self._abort(context, grpc.StatusCode.NOT_FOUND, "JOB_NOT_FOUND", f"no job {name}")
        return self.jobs[name]

    def _update(self, name: str, context: Any) -> update_pb2.Update:
        job_name, _, revision = name.partition("/updates/")
        for update in self.updates[self._job(job_name, context).name]:
            if update.revision == int(revision):
                return update
        self._abort(context, grpc.StatusCode.NOT_FOUND, "UPDATE_NOT_FOUND", f"no update {name}")
        raise AssertionError("abort raises")

    def _page(self, items: list[Any], token: str) -> tuple[list[Any], str]:
        begin = int(token or 0)
        end = begin + self.page_size
        return items[begin:end], str(end) if end < len(items) else ""

    def _check(self, index: int, change: update_pb2.Change, request: Any, context: Any) -> None:
        if change.parameter != "learning_rate":
            field = FieldViolation(
                f"spec.changes[{index}].parameter",
                f"got {change.parameter!r}, the job has learning_rate",
            )
            self._abort(
                context,
                grpc.StatusCode.INVALID_ARGUMENT,
                "UNKNOWN_PARAMETER",
                f"unknown parameter {change.parameter!r}",
                violations=[field],
            )
        value = change.set.value.number
        if change.HasField("set") and not (math.isfinite(value) and value >= 0):
            field = FieldViolation(
                f"spec.changes[{index}].set.value", f"got {value}, must be finite and 0 or more"
            )
            self._abort(
                context,
                grpc.StatusCode.INVALID_ARGUMENT,
                "OUT_OF_BOUNDS",
                "learning_rate is out of bounds",
                violations=[field],
            )
        if value > 2e-4 and not request.spec.force:
            self._abort(
                context,
                grpc.StatusCode.FAILED_PRECONDITION,
                "GUARD_RAIL",
                f"learning_rate would grow by more than 10 x to {value:g}; use force",
            )


def make_series(name: str, values: list[float], *, first_step: int = 1) -> pb.Series:
    """A series with one sample a step, a second apart."""
    finite = [value for value in values if math.isfinite(value)]
    series = pb.Series(
        name=name,
        steps=range(first_step, first_step + len(values)),
        values=values,
        time_micros=[int((BEGIN + s) * 1e6) for s in range(len(values))],
    )
    series.statistics.count = len(values)
    series.statistics.non_finite_count = len(values) - len(finite)
    if finite:
        series.statistics.last = finite[-1]
        series.statistics.minimum = min(finite)
        series.statistics.maximum = max(finite)
        series.statistics.mean = sum(finite) / len(finite)
        changes = [b - a for a, b in itertools.pairwise(finite)]
        if changes:
            series.statistics.slope = sum(changes) / len(changes)
    return series
