"""The client's calls about a job's updates: asking for them, and what becomes of them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Coroutine, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Unpack

from control_plane._client.changing import ActionCalls
from control_plane._client.names import update_name
from control_plane._client.requests import duration, update_request, updates_request
from control_plane._client.waiting import applied, async_wait_update, wait_update
from grpc_runtime.client.call import Call, unary_call
from midcourse.control.v1 import control_pb2, update_pb2
from midcourse.control.v1.control_pb2_grpc import ControlPlaneServiceStub

if TYPE_CHECKING:
    from datetime import datetime, timedelta

    from control_plane._client.requests import UpdateOptions
    from grpc_runtime.client.aio import AsyncTransport
    from grpc_runtime.client.transport import Transport


def _update_parameters(
    job: str,
    changes: Iterable[update_pb2.Change],
    action: update_pb2.Action | None,
    options: UpdateOptions,
) -> Call[update_pb2.Update]:
    return unary_call(
        ControlPlaneServiceStub,
        lambda stub: stub.UpdateParameters,
        update_request(job, changes, action, options),
        lambda response: response.update,
    )


def _get_update(job: str, revision: int) -> Call[update_pb2.Update]:
    return unary_call(
        ControlPlaneServiceStub,
        lambda stub: stub.GetUpdate,
        control_pb2.GetUpdateRequest(name=update_name(job, revision)),
        lambda response: response.update,
    )


def _list_updates(request: control_pb2.ListUpdatesRequest) -> Call[Sequence[update_pb2.Update]]:
    return unary_call(
        ControlPlaneServiceStub,
        lambda stub: stub.ListUpdates,
        request,
        lambda response: response.updates,
    )


def _get_lineage(job: str) -> Call[list[control_pb2.LineageSpan]]:
    return unary_call(
        ControlPlaneServiceStub,
        lambda stub: stub.ListUpdates,
        updates_request(job, page_size=1),
        lambda response: list(response.lineage),
    )


def _cancel_update(
    job: str, revision: int, reason: str, wait: float | None
) -> Call[update_pb2.Update]:
    return unary_call(
        ControlPlaneServiceStub,
        lambda stub: stub.CancelUpdate,
        control_pb2.CancelUpdateRequest(
            name=update_name(job, revision),
            reason=reason,
            timeout=None if wait is None else duration(wait),
        ),
        lambda response: response.update,
        repeatable=False,  # the second of two would say that it is settled
        extra_seconds=wait or 0.0,
    )


def _is_waited_for(options: UpdateOptions) -> bool:
    return options.get("wait", False) and not options.get("validate_only", False)


class UpdateCalls(ActionCalls[update_pb2.Update]):
    """Calls about updates."""

    _transport: Transport

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
        update = self._transport.run(_update_parameters(job, changes, action, options))
        if _is_waited_for(options):
            return self.wait_applied(job, update.revision, timeout=options.get("wait_timeout"))
        return update

    def get_update(self, job: str, revision: int) -> update_pb2.Update:
        """Returns an update.

        Raises:
            NotFoundError: There is no such job or update.
        """
        return self._transport.run(_get_update(job, revision))

    def list_updates(
        self,
        job: str = "-",
        *,
        states: Iterable[update_pb2.UpdateState.ValueType] = (),
        oldest_first: bool = False,
        page_size: int = 0,
        selector: str = "",
        author: str = "",
        start_time: datetime | timedelta | None = None,
        end_time: datetime | timedelta | None = None,
    ) -> Iterator[update_pb2.Update]:
        """Returns updates, newest first unless asked otherwise, page by page.

        Args:
            job: Whose; by default those of all jobs, in the order of their times.
            states: Only those in one of these states.
            oldest_first: The order.
            page_size: Updates to fetch at a time; 0: the server's choice.
            selector: Of all jobs, only those with these labels, as in :meth:`list_jobs`.
            author: Only what this principal asked for.
            start_time: Only those created at this time or later; or so long from now.
            end_time: Only those created before this time; or so long from now.

        Raises:
            NotFoundError: There is no such job.
        """
        request = updates_request(
            job,
            states=states,
            oldest_first=oldest_first,
            page_size=page_size,
            selector=selector,
            author=author,
            start_time=start_time,
            end_time=end_time,
        )
        return self._transport.run_pages(_list_updates(request))

    def get_lineage(self, job: str) -> list[control_pb2.LineageSpan]:
        """Returns the steps that a job's present weights went through, by training process.

        Raises:
            NotFoundError: There is no such job.
        """
        return self._transport.run(_get_lineage(job))

    def wait_update(
        self, job: str, revision: int, *, timeout: float | None = None
    ) -> update_pb2.Update:
        """Returns an update once it is settled, or as it stands after ``timeout`` seconds.

        A control plane that restarts meanwhile is asked again.

        Raises:
            NotFoundError: There is no such job or update.
            UnavailableError: The control plane was not reached for a minute, or within the time.
        """
        return wait_update(self._transport, update_name(job, revision), timeout)

    def wait_applied(
        self, job: str, revision: int, *, timeout: float | None = None
    ) -> update_pb2.Update:
        """Returns an update once it is in force.

        Raises:
            UpdateNotAppliedError: It was rejected, expired or cancelled.
            UpdateTimeoutError: It is not settled after ``timeout`` seconds.
        """
        return applied(self.wait_update(job, revision, timeout=timeout), timeout)

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
        return self._transport.run(_cancel_update(job, revision, reason, wait))


class AsyncUpdateCalls(ActionCalls[Coroutine[Any, Any, update_pb2.Update]]):
    """As :class:`UpdateCalls`, awaitable."""

    _transport: AsyncTransport

    async def update_parameters(
        self,
        job: str,
        changes: Iterable[update_pb2.Change] = (),
        *,
        action: update_pb2.Action | None = None,
        **options: Unpack[UpdateOptions],
    ) -> update_pb2.Update:
        """As :meth:`Client.update_parameters`."""
        update = await self._transport.run(_update_parameters(job, changes, action, options))
        if _is_waited_for(options):
            timeout = options.get("wait_timeout")
            return await self.wait_applied(job, update.revision, timeout=timeout)
        return update

    async def get_update(self, job: str, revision: int) -> update_pb2.Update:
        """As :meth:`Client.get_update`."""
        return await self._transport.run(_get_update(job, revision))

    def list_updates(
        self,
        job: str = "-",
        *,
        states: Iterable[update_pb2.UpdateState.ValueType] = (),
        oldest_first: bool = False,
        page_size: int = 0,
        selector: str = "",
        author: str = "",
        start_time: datetime | timedelta | None = None,
        end_time: datetime | timedelta | None = None,
    ) -> AsyncIterator[update_pb2.Update]:
        """As :meth:`Client.list_updates`, to be iterated over with ``async for``."""
        request = updates_request(
            job,
            states=states,
            oldest_first=oldest_first,
            page_size=page_size,
            selector=selector,
            author=author,
            start_time=start_time,
            end_time=end_time,
        )
        return self._transport.run_pages(_list_updates(request))

    async def get_lineage(self, job: str) -> list[control_pb2.LineageSpan]:
        """As :meth:`Client.get_lineage`."""
        return await self._transport.run(_get_lineage(job))

    async def wait_update(
        self, job: str, revision: int, *, timeout: float | None = None
    ) -> update_pb2.Update:
        """As :meth:`Client.wait_update`."""
        return await async_wait_update(self._transport, update_name(job, revision), timeout)

    async def wait_applied(
        self, job: str, revision: int, *, timeout: float | None = None
    ) -> update_pb2.Update:
        """As :meth:`Client.wait_applied`."""
        return applied(await self.wait_update(job, revision, timeout=timeout), timeout)

    async def cancel_update(
        self, job: str, revision: int, *, reason: str = "", wait: float | None = None
    ) -> update_pb2.Update:
        """As :meth:`Client.cancel_update`."""
        return await self._transport.run(_cancel_update(job, revision, reason, wait))
