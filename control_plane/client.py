"""Client of the control plane: watch and correct training jobs from Python.

>>> from control_plane.client import Client
>>> with Client() as plane:
...     update = plane.set("my-run", learning_rate=5e-5, wait=True)
...     print(update.applied.step)

Answers are the API's own messages (``midcourse.control.v1``), errors are
:class:`MidcourseError` and its subclasses, which every client of the project raises; those of
:class:`UpdateError` are this one's own.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Self, Unpack

from control_plane import changes as changes_
from control_plane._client.actions import ActionCalls
from control_plane._client.errors import (
    UpdateError,
    UpdateNotAppliedError,
    UpdateTimeoutError,
    not_applied,
    not_settled,
)
from control_plane._client.names import is_settled, job_id, job_name, update_name
from control_plane._client.requests import (
    UpdateOptions,
    duration,
    metrics_request,
    update_request,
    updates_request,
)
from control_plane._client.target import ADDRESS_VARIABLE, DEFAULT_ADDRESS
from control_plane._client.transport import ControlPlaneTransport
from control_plane._client.watch import JobWatch
from grpc_runtime.client.errors import (
    AlreadyExistsError,
    ConflictError,
    DeadlineExceededError,
    FailedPreconditionError,
    InvalidArgumentError,
    MidcourseError,
    NotFoundError,
    OutOfRangeError,
    PermissionDeniedError,
    ResourceExhaustedError,
    UnauthenticatedError,
    UnavailableError,
)
from grpc_runtime.client.retry import RetryPolicy
from grpc_runtime.errors import FieldViolation
from midcourse.control.v1 import control_pb2, job_pb2, update_pb2

if TYPE_CHECKING:
    import grpc

    from control_plane.changes import Coupling, Mode, ParameterValue, Shape

__all__ = [
    "ADDRESS_VARIABLE",
    "DEFAULT_ADDRESS",
    "AlreadyExistsError",
    "Client",
    "ConflictError",
    "DeadlineExceededError",
    "FailedPreconditionError",
    "FieldViolation",
    "InvalidArgumentError",
    "JobWatch",
    "MidcourseError",
    "NotFoundError",
    "OutOfRangeError",
    "PermissionDeniedError",
    "ResourceExhaustedError",
    "RetryPolicy",
    "UnauthenticatedError",
    "UnavailableError",
    "UpdateError",
    "UpdateNotAppliedError",
    "UpdateOptions",
    "UpdateTimeoutError",
    "is_settled",
    "job_id",
]


class Client(ActionCalls):
    """A connection to a control plane; safe to share between threads.

    Every call has a deadline. Calls that can safely be repeated (everything that reads; updates,
    as they carry a request id) are tried again with backoff while the server is unavailable.

    Raises:
        ValueError: The address is none.
    """

    def __init__(
        self,
        address: str | None = None,
        *,
        timeout: float = 10.0,
        retry: RetryPolicy | None = None,
        credentials: grpc.ChannelCredentials | None = None,
    ) -> None:
        """Makes a client; it connects with the first call.

        Args:
            address: ``host:port`` or ``unix:/path``; by default what the environment variable
                MIDCOURSE_CONTROL_PLANE says, else 127.0.0.1:50051.
            timeout: Seconds that a call may take, all its tries together. Waits and watches have
                their own limits.
            retry: When to try again; by default 4 tries within about a second.
            credentials: TLS for the channel; by default none.
        """
        self._transport = ControlPlaneTransport(
            address, timeout=timeout, retry=retry or RetryPolicy(), credentials=credentials
        )
        self._stub = self._transport.stub

    @property
    def address(self) -> str:
        """Where the control plane is."""
        return self._transport.address

    def close(self) -> None:
        """Closes the connection, if this client made it; calls under way end with an error."""
        self._transport.close()

    def with_metadata(self, metadata: Sequence[tuple[str, str | bytes]]) -> Self:
        """Returns a client over the same connection that sends this with every call.

        For a service that asks on behalf of its own callers, with their credentials. What this
        client sends itself is not added: a call never has the credentials of two. Closing the
        client returned closes nothing; the one that made the connection owns it and must outlive
        it. The values are never shown, in errors neither.

        Args:
            metadata: Pairs such as ``("authorization", "Bearer …")``; keys are lower case, and
                end in ``-bin`` where the value is bytes.

        Raises:
            ValueError: A key or value is not allowed in metadata.
        """
        other = copy.copy(self)
        other._transport = self._transport.with_metadata(metadata)  # noqa: SLF001 - one's own
        return other

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # Jobs

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
        request = control_pb2.CreateJobRequest(
            job_id=job_id(job), labels=labels, method=method, validate_only=validate_only
        )
        return self._transport.call(self._stub.CreateJob, request, repeatable=False).job

    def get_job(self, job: str) -> job_pb2.Job:
        """Returns a job.

        Raises:
            NotFoundError: There is none of that name.
        """
        return self._transport.call(
            self._stub.GetJob, control_pb2.GetJobRequest(name=job_name(job))
        ).job

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
        request = control_pb2.ListJobsRequest(selector=selector, states=states, page_size=page_size)
        return self._transport.pages(self._stub.ListJobs, request, lambda page: page.jobs)

    def delete_job(self, job: str, *, etag: str = "", validate_only: bool = False) -> None:
        """Deletes a job with its updates and metrics.

        Raises:
            NotFoundError: There is none of that name.
            FailedPreconditionError: Its session is live.
            ConflictError: ``etag`` was given and is not the current one.
        """
        request = control_pb2.DeleteJobRequest(
            name=job_name(job), etag=etag, validate_only=validate_only
        )
        self._transport.call(self._stub.DeleteJob, request, repeatable=False)

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
            job: Only this job; then the watch ends when it is deleted.
            position: Go on after this position of an earlier watch instead of with a snapshot.
            progress_interval: Report progress and metrics too, at most this often, in seconds.
            patience: Seconds to go on without reaching the server; None: for ever.
        """
        interval = None if progress_interval is None else duration(progress_interval)
        request = control_pb2.WatchJobsRequest(
            selector=selector,
            name=job_name(job) if job else "",
            position=position,
            progress_interval=interval,
        )
        return JobWatch(
            partial(self._stub.WatchJobs, metadata=self._transport.metadata),
            self._transport.translate,
            request,
            policy=self._transport.retry,
            patience=patience,
        )

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
            InvalidArgumentError: A range is not allowed.
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
        return list(self._transport.call(self._stub.QueryMetrics, request).series)

    # Updates

    def update_parameters(
        self,
        job: str,
        changes: Iterable[update_pb2.Change] = (),
        *,
        action: update_pb2.Action | None = None,
        **options: Unpack[UpdateOptions],
    ) -> update_pb2.Update:
        """Asks for changes, made by :mod:`control_plane.changes`, that take effect together.

        Returns:
            The update as accepted: on disk, not in force yet; with ``wait``, as applied.

        Raises:
            NotFoundError: There is no such job.
            InvalidArgumentError: A parameter, value or option is not allowed (``violations``).
            FailedPreconditionError: The job has ended, or a soft guard rail says no.
            ConflictError: ``expected_revision`` is not the newest.
            AlreadyExistsError: ``request_id`` was used with other content.
            UpdateNotAppliedError: With ``wait``: rejected, expired or cancelled.
            UpdateTimeoutError: With ``wait``: still open after ``wait_timeout``.
        """
        request = update_request(job, changes, action, options)
        update = self._transport.call(self._stub.UpdateParameters, request).update
        if options.get("wait") and not request.validate_only:
            return self.wait_applied(job, update.revision, timeout=options.get("wait_timeout"))
        return update

    def set(
        self,
        job: str,
        values: Mapping[str, ParameterValue | update_pb2.Change] | None = None,
        /,
        *,
        mode: Mode = "set",
        hold_steps: int | None = None,
        group: str = "",
        coupling: Coupling = "none",
        at_step: int | None = None,
        max_step: int | None = None,
        deadline: datetime | timedelta | None = None,
        reason: str = "",
        force: bool = False,
        expected_revision: int | None = None,
        request_id: str | None = None,
        validate_only: bool = False,
        wait: bool = False,
        wait_timeout: float | None = None,
        **parameters: ParameterValue | update_pb2.Change,
    ) -> update_pb2.Update:
        """Sets parameters: ``plane.set("my-run", learning_rate=5e-5, wait=True)``.

        Parameters are given by keyword or, where a name is taken by an option, in a mapping. What
        is a change already (see :mod:`control_plane.changes`) goes along as it is. ``mode``,
        ``hold_steps``, ``group`` and ``coupling`` are those of
        :func:`control_plane.changes.set_value`, the other options those of
        :class:`UpdateOptions`, the errors those of :meth:`update_parameters`.
        """
        return self.update_parameters(
            job,
            [
                value
                if isinstance(value, update_pb2.Change)
                else changes_.set_value(
                    name, value, mode=mode, hold_steps=hold_steps, group=group, coupling=coupling
                )
                for name, value in {**(values or {}), **parameters}.items()
            ],
            at_step=at_step,
            max_step=max_step,
            deadline=deadline,
            reason=reason,
            force=force,
            expected_revision=expected_revision,
            request_id=request_id,
            validate_only=validate_only,
            wait=wait,
            wait_timeout=wait_timeout,
        )

    def multiply(
        self,
        job: str,
        factors: Mapping[str, float],
        *,
        group: str = "",
        **options: Unpack[UpdateOptions],
    ) -> update_pb2.Update:
        """Scales parameters: ``plane.multiply("my-run", {"learning_rate": 0.5})``."""
        scaled = [changes_.multiply(name, factor, group=group) for name, factor in factors.items()]
        return self.update_parameters(job, scaled, **options)

    def ramp(
        self,
        job: str,
        values: Mapping[str, ParameterValue],
        *,
        steps: int,
        group: str = "",
        **options: Unpack[UpdateOptions],
    ) -> update_pb2.Update:
        """Takes parameters linearly to values over a number of optimizer steps."""
        ramps = [
            changes_.ramp(name, value, steps=steps, group=group) for name, value in values.items()
        ]
        return self.update_parameters(job, ramps, **options)

    def schedule(
        self,
        job: str,
        parameter: str,
        shape: Shape,
        *,
        peak: float | None = None,
        warmup_steps: int = 0,
        floor: float = 0.0,
        steps: int | None = None,
        group: str = "",
        **options: Unpack[UpdateOptions],
    ) -> update_pb2.Update:
        """Gives a parameter a new schedule; see :func:`control_plane.changes.schedule`."""
        change = changes_.schedule(
            parameter,
            shape,
            peak=peak,
            warmup_steps=warmup_steps,
            floor=floor,
            steps=steps,
            group=group,
        )
        return self.update_parameters(job, [change], **options)

    def release(
        self, job: str, *parameters: str, group: str = "", **options: Unpack[UpdateOptions]
    ) -> update_pb2.Update:
        """Gives parameters back to the schedule that the training script made."""
        released = [changes_.release(name, group=group) for name in parameters]
        return self.update_parameters(job, released, **options)

    def get_update(self, job: str, revision: int) -> update_pb2.Update:
        """Returns an update.

        Raises:
            NotFoundError: There is no such job or update.
        """
        request = control_pb2.GetUpdateRequest(name=update_name(job, revision))
        return self._transport.call(self._stub.GetUpdate, request).update

    def list_updates(
        self,
        job: str,
        *,
        states: Iterable[update_pb2.UpdateState.ValueType] = (),
        oldest_first: bool = False,
        page_size: int = 0,
    ) -> Iterator[update_pb2.Update]:
        """Returns a job's updates, newest first unless asked otherwise, page by page.

        Raises:
            NotFoundError: There is no such job.
        """
        request = updates_request(
            job, states=states, oldest_first=oldest_first, page_size=page_size
        )
        return self._transport.pages(self._stub.ListUpdates, request, lambda page: page.updates)

    def get_lineage(self, job: str) -> list[control_pb2.LineageSpan]:
        """Returns the steps that a job's present weights went through, by training process.

        Raises:
            NotFoundError: There is no such job.
        """
        request = updates_request(job, page_size=1)
        return list(self._transport.call(self._stub.ListUpdates, request).lineage)

    def wait_update(
        self, job: str, revision: int, *, timeout: float | None = None
    ) -> update_pb2.Update:
        """Returns an update once it is settled, or as it stands after ``timeout`` seconds.

        A control plane that restarts meanwhile is asked again.

        Raises:
            NotFoundError: There is no such job or update.
            UnavailableError: The control plane was not reached for a minute, or within the time.
        """
        return self._transport.wait_update(update_name(job, revision), timeout)

    def wait_applied(
        self, job: str, revision: int, *, timeout: float | None = None
    ) -> update_pb2.Update:
        """Returns an update once it is in force.

        Raises:
            UpdateNotAppliedError: It was rejected, expired or cancelled.
            UpdateTimeoutError: It is not settled after ``timeout`` seconds.
        """
        update = self.wait_update(job, revision, timeout=timeout)
        if update.state == update_pb2.UPDATE_STATE_APPLIED:
            return update
        if is_settled(update):
            raise not_applied(update)
        assert timeout is not None
        raise not_settled(update, timeout)

    def cancel_update(
        self, job: str, revision: int, *, reason: str = "", wait: float | None = None
    ) -> update_pb2.Update:
        """Withdraws an update that is not in force yet.

        Args:
            job: Id of the job.
            revision: Which of its updates.
            reason: Why, for people.
            wait: Seconds to wait for the trainer's answer, if it has the update already; by
                default the server's choice.

        Returns:
            The update: cancelled, or still open with ``cancel_requested`` set.

        Raises:
            NotFoundError: There is no such job or update.
            FailedPreconditionError: It is settled already.
        """
        request = control_pb2.CancelUpdateRequest(
            name=update_name(job, revision),
            reason=reason,
            timeout=None if wait is None else duration(wait),
        )
        timeout = self._transport.timeout + (wait or 0.0)
        return self._transport.call(
            self._stub.CancelUpdate, request, repeatable=False, timeout=timeout
        ).update
