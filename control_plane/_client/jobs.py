"""The client's calls about jobs: what there is, how it goes, and watching it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from control_plane._client.names import job_id, job_name
from control_plane._client.requests import metrics_request, watch_request
from control_plane._client.watch import AsyncJobWatch, JobWatch
from grpc_runtime.client.call import Call, unary_call
from midcourse.control.v1 import control_pb2, job_pb2
from midcourse.control.v1.control_pb2_grpc import ControlPlaneServiceStub

if TYPE_CHECKING:
    from datetime import datetime

    from grpc_runtime.client.aio import AsyncTransport
    from grpc_runtime.client.transport import Transport


def _create_job(
    job: str, labels: Mapping[str, str] | None, method: str, *, validate_only: bool
) -> Call[job_pb2.Job]:
    return unary_call(
        ControlPlaneServiceStub,
        lambda stub: stub.CreateJob,
        control_pb2.CreateJobRequest(
            job_id=job_id(job), labels=labels, method=method, validate_only=validate_only
        ),
        lambda response: response.job,
        repeatable=False,  # the second of two would say that there is one
    )


def _get_job(job: str) -> Call[job_pb2.Job]:
    return unary_call(
        ControlPlaneServiceStub,
        lambda stub: stub.GetJob,
        control_pb2.GetJobRequest(name=job_name(job)),
        lambda response: response.job,
    )


def _list_jobs(
    selector: str, states: Iterable[job_pb2.JobState.ValueType], page_size: int
) -> Call[Sequence[job_pb2.Job]]:
    return unary_call(
        ControlPlaneServiceStub,
        lambda stub: stub.ListJobs,
        control_pb2.ListJobsRequest(selector=selector, states=states, page_size=page_size),
        lambda response: response.jobs,
    )


def _label_job(
    job: str,
    labels: Mapping[str, str] | None,
    remove: Iterable[str],
    etag: str,
    *,
    validate_only: bool,
) -> Call[job_pb2.Job]:
    return unary_call(
        ControlPlaneServiceStub,
        lambda stub: stub.UpdateJob,
        control_pb2.UpdateJobRequest(
            name=job_name(job),
            set_labels=labels,
            remove_labels=remove,
            etag=etag,
            validate_only=validate_only,
        ),
        lambda response: response.job,
        repeatable=not etag,  # the second of two would be refused: the first changed the etag
    )


def _delete_job(job: str, etag: str, *, validate_only: bool) -> Call[None]:
    return unary_call(
        ControlPlaneServiceStub,
        lambda stub: stub.DeleteJob,
        control_pb2.DeleteJobRequest(name=job_name(job), etag=etag, validate_only=validate_only),
        lambda _: None,
        repeatable=False,  # the second of two would find none
    )


def _query_metrics(request: control_pb2.QueryMetricsRequest) -> Call[list[control_pb2.Series]]:
    return unary_call(
        ControlPlaneServiceStub,
        lambda stub: stub.QueryMetrics,
        request,
        lambda response: list(response.series),
    )


class JobCalls:
    """Calls about jobs."""

    _transport: Transport

    def create_job(
        self,
        job: str,
        *,
        labels: Mapping[str, str] | None = None,
        method: str = "",
        validate_only: bool = False,
    ) -> job_pb2.Job:
        """Makes a job known before its trainer shows itself.

        Raises:
            AlreadyExistsError: There is one of that name.
            InvalidArgumentError: The name or a label is not allowed.
        """
        call = _create_job(job, labels, method, validate_only=validate_only)
        return self._transport.run(call)

    def get_job(self, job: str) -> job_pb2.Job:
        """Returns a job.

        Raises:
            NotFoundError: There is none of that name.
        """
        return self._transport.run(_get_job(job))

    def list_jobs(
        self,
        selector: str = "",
        *,
        states: Iterable[job_pb2.JobState.ValueType] = (),
        page_size: int = 0,
    ) -> Iterator[job_pb2.Job]:
        """Returns jobs in the order of their names, fetched page by page.

        Args:
            selector: Labels with Kubernetes grammar, such as ``team=nlp,method in (dpo,orpo)``.
            states: Only jobs in one of these; by default all.
            page_size: Jobs to fetch at a time; 0: the server's choice.

        Raises:
            InvalidArgumentError: The selector cannot be understood.
        """
        return self._transport.run_pages(_list_jobs(selector, states, page_size))

    def label_job(
        self,
        job: str,
        labels: Mapping[str, str] | None = None,
        *,
        remove: Iterable[str] = (),
        etag: str = "",
        validate_only: bool = False,
    ) -> job_pb2.Job:
        """Sets and removes labels. They stay so, whatever the job's agent says of the same keys.

        Args:
            job: Id of the job.
            labels: To add or to change.
            remove: Keys of labels.
            etag: Change only if the job still has this one; empty: whatever it has.
            validate_only: Check only.

        Raises:
            NotFoundError: There is no such job.
            InvalidArgumentError: A label is not allowed, or too many.
            ConflictError: The job has another etag.
        """
        call = _label_job(job, labels, remove, etag, validate_only=validate_only)
        return self._transport.run(call)

    def delete_job(self, job: str, *, etag: str = "", validate_only: bool = False) -> None:
        """Deletes a job with its updates and metrics.

        Raises:
            NotFoundError: There is none of that name.
            FailedPreconditionError: Its session is live.
            ConflictError: ``etag`` was given and is not the current one.
        """
        self._transport.run(_delete_job(job, etag, validate_only=validate_only))

    def watch_jobs(
        self,
        selector: str = "",
        *,
        job: str = "",
        position: str = "",
        progress_interval: float | None = None,
        patience: float | None = None,
    ) -> JobWatch:
        """Watches jobs: a snapshot, then every change in order, through reconnects.

        Args:
            selector: Labels, as in :meth:`list_jobs`.
            job: Only this job; then the watch ends when it is deleted. Where there is none yet,
                the watch waits for it.
            position: Go on after this position of an earlier watch instead of with a snapshot.
            progress_interval: Report progress and metrics too, at most this often, in seconds.
            patience: Seconds to go on without reaching the server; None: for ever.
        """
        request = watch_request(selector, job, position, progress_interval)
        return JobWatch(self._transport, request, patience=patience)

    def query_metrics(
        self,
        job: str,
        names: Sequence[str] = (),
        *,
        first_step: int | None = None,
        last_step: int | None = None,
        start_time: datetime | None = None,
        end_time: datetime | None = None,
        last: int = 0,
        max_points: int = 0,
    ) -> list[control_pb2.Series]:
        """Returns the course of metrics.

        Args:
            job: Id of the job.
            names: Names of metrics; by default all that the job has.
            first_step: Only from this optimizer step on.
            last_step: Only up to this optimizer step.
            start_time: Only samples at or after this time.
            end_time: Only samples before this time.
            last: Only the newest so many samples of each; 0: all.
            max_points: Most points of each series, spikes kept; 0: the server's choice.

        Raises:
            NotFoundError: There is no such job.
            InvalidArgumentError: A range is not allowed, or has too many samples in it.
        """
        request = metrics_request(
            job,
            names,
            first_step=first_step,
            last_step=last_step,
            start_time=start_time,
            end_time=end_time,
            last=last,
            max_points=max_points,
        )
        return self._transport.run(_query_metrics(request))


class AsyncJobCalls:
    """As :class:`JobCalls`, awaitable."""

    _transport: AsyncTransport

    async def create_job(
        self,
        job: str,
        *,
        labels: Mapping[str, str] | None = None,
        method: str = "",
        validate_only: bool = False,
    ) -> job_pb2.Job:
        """As :meth:`Client.create_job`."""
        call = _create_job(job, labels, method, validate_only=validate_only)
        return await self._transport.run(call)

    async def get_job(self, job: str) -> job_pb2.Job:
        """As :meth:`Client.get_job`."""
        return await self._transport.run(_get_job(job))

    def list_jobs(
        self,
        selector: str = "",
        *,
        states: Iterable[job_pb2.JobState.ValueType] = (),
        page_size: int = 0,
    ) -> AsyncIterator[job_pb2.Job]:
        """As :meth:`Client.list_jobs`, to be iterated over with ``async for``."""
        return self._transport.run_pages(_list_jobs(selector, states, page_size))

    async def label_job(
        self,
        job: str,
        labels: Mapping[str, str] | None = None,
        *,
        remove: Iterable[str] = (),
        etag: str = "",
        validate_only: bool = False,
    ) -> job_pb2.Job:
        """As :meth:`Client.label_job`."""
        call = _label_job(job, labels, remove, etag, validate_only=validate_only)
        return await self._transport.run(call)

    async def delete_job(self, job: str, *, etag: str = "", validate_only: bool = False) -> None:
        """As :meth:`Client.delete_job`."""
        await self._transport.run(_delete_job(job, etag, validate_only=validate_only))

    def watch_jobs(
        self,
        selector: str = "",
        *,
        job: str = "",
        position: str = "",
        progress_interval: float | None = None,
        patience: float | None = None,
    ) -> AsyncJobWatch:
        """As :meth:`Client.watch_jobs`, to be iterated over with ``async for``."""
        request = watch_request(selector, job, position, progress_interval)
        return AsyncJobWatch(self._transport, request, patience=patience)

    async def query_metrics(
        self,
        job: str,
        names: Sequence[str] = (),
        *,
        first_step: int | None = None,
        last_step: int | None = None,
        start_time: datetime | None = None,
        end_time: datetime | None = None,
        last: int = 0,
        max_points: int = 0,
    ) -> list[control_pb2.Series]:
        """As :meth:`Client.query_metrics`."""
        request = metrics_request(
            job,
            names,
            first_step=first_step,
            last_step=last_step,
            start_time=start_time,
            end_time=end_time,
            last=last,
            max_points=max_points,
        )
        return await self._transport.run(_query_metrics(request))
