"""The client's calls that are about many jobs at once."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Coroutine, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Generic, TypeVar, Unpack

from control_plane import changes as changes_
from control_plane._client.requests import batch_name, batch_request
from control_plane._client.watch import AsyncBatchWatch, BatchWatch
from grpc_runtime.client.call import Call, unary_call
from midcourse.control.v1 import batch_pb2, control_pb2, update_pb2
from midcourse.control.v1.control_pb2_grpc import ControlPlaneServiceStub

if TYPE_CHECKING:
    from control_plane._client.requests import BatchOptions
    from control_plane.changes import ParameterValue
    from grpc_runtime.client.aio import AsyncTransport
    from grpc_runtime.client.transport import Transport

_Answer = TypeVar("_Answer")


def _batch_update_parameters(
    request: control_pb2.BatchUpdateParametersRequest,
) -> Call[control_pb2.BatchUpdateParametersResponse]:
    return unary_call(
        ControlPlaneServiceStub,
        lambda stub: stub.BatchUpdateParameters,
        request,
        lambda response: response,
    )


def _get_batch(batch: str) -> Call[batch_pb2.Batch]:
    return unary_call(
        ControlPlaneServiceStub,
        lambda stub: stub.GetBatch,
        control_pb2.GetBatchRequest(name=batch_name(batch)),
        lambda response: response.batch,
    )


def _list_batches(page_size: int) -> Call[Sequence[batch_pb2.Batch]]:
    return unary_call(
        ControlPlaneServiceStub,
        lambda stub: stub.ListBatches,
        control_pb2.ListBatchesRequest(page_size=page_size),
        lambda response: response.batches,
    )


def _cancel_batch(batch: str, reason: str) -> Call[batch_pb2.Batch]:
    return unary_call(
        ControlPlaneServiceStub,
        lambda stub: stub.CancelBatch,
        control_pb2.CancelBatchRequest(name=batch_name(batch), reason=reason),
        lambda response: response.batch,
        repeatable=False,  # the second of two would say that it is settled
    )


class BatchChangeCalls(ABC, Generic[_Answer]):
    """What both kinds of client say in terms of the one call that changes many jobs."""

    @abstractmethod
    def batch_update_parameters(
        self,
        selector: str = "",
        changes: Iterable[update_pb2.Change] = (),
        *,
        jobs: Iterable[str] = (),
        action: update_pb2.Action | None = None,
        **options: Unpack[BatchOptions],
    ) -> _Answer:
        """Asks for the same of many jobs."""

    def batch_set(
        self,
        selector: str = "",
        values: Mapping[str, ParameterValue | update_pb2.Change] | None = None,
        *,
        jobs: Iterable[str] = (),
        **options: Unpack[BatchOptions],
    ) -> _Answer:
        """Sets parameters of many jobs: ``plane.batch_set("team=nlp", {"learning_rate": 5e-5})``.

        What is a change already (see :mod:`control_plane.changes`) goes along as it is; the rest
        as in :meth:`batch_update_parameters`.
        """
        changes = [
            value if isinstance(value, update_pb2.Change) else changes_.set_value(name, value)
            for name, value in (values or {}).items()
        ]
        return self.batch_update_parameters(selector, changes, jobs=jobs, **options)


class BatchCalls(BatchChangeCalls[control_pb2.BatchUpdateParametersResponse]):
    """One update each for many jobs."""

    _transport: Transport

    def batch_update_parameters(
        self,
        selector: str = "",
        changes: Iterable[update_pb2.Change] = (),
        *,
        jobs: Iterable[str] = (),
        action: update_pb2.Action | None = None,
        **options: Unpack[BatchOptions],
    ) -> control_pb2.BatchUpdateParametersResponse:
        """Asks for the same of many jobs; all of it is valid and on disk, or nothing is.

        Args:
            selector: Which jobs: labels, as in :meth:`Client.list_jobs`. Those that have ended are
                not chosen.
            changes: Made by :mod:`control_plane.changes`.
            jobs: Ids of jobs, instead of a selector.
            action: Made by :mod:`control_plane.actions`.
            **options: See :class:`BatchOptions`.

        Returns:
            The batch, and what becomes of it at each job: its revision, old → new as far as known.

        Raises:
            NotFoundError: No job is chosen.
            MidcourseError: A job does not take it; ``violations`` name which, and why. With
                ``best_effort``: none takes it.
        """
        request = batch_request(selector, jobs, changes, action, options)
        return self._transport.run(_batch_update_parameters(request))

    def get_batch(self, batch: str) -> batch_pb2.Batch:
        """Returns a batch and how far it has come.

        Raises:
            NotFoundError: There is none of that name.
        """
        return self._transport.run(_get_batch(batch))

    def list_batches(self, *, page_size: int = 0) -> Iterator[batch_pb2.Batch]:
        """Returns batches, newest first, fetched page by page."""
        return self._transport.run_pages(_list_batches(page_size))

    def watch_batch(self, batch: str, *, patience: float | None = None) -> BatchWatch:
        """Watches a batch: all its items, then those that change, through reconnects.

        The watch ends once all its updates are settled. After a reconnect all items come again.

        Args:
            batch: Its name, or number.
            patience: Seconds to go on without reaching the server; None: for ever.
        """
        request = control_pb2.WatchBatchRequest(name=batch_name(batch))
        return BatchWatch(self._transport, request, patience=patience)

    def cancel_batch(self, batch: str, *, reason: str = "") -> batch_pb2.Batch:
        """Withdraws those updates of a batch that are not in force yet.

        Raises:
            NotFoundError: There is none of that name.
            FailedPreconditionError: All of it is settled already.
        """
        return self._transport.run(_cancel_batch(batch, reason))


class AsyncBatchCalls(
    BatchChangeCalls[Coroutine[Any, Any, control_pb2.BatchUpdateParametersResponse]]
):
    """As :class:`BatchCalls`, awaitable."""

    _transport: AsyncTransport

    async def batch_update_parameters(
        self,
        selector: str = "",
        changes: Iterable[update_pb2.Change] = (),
        *,
        jobs: Iterable[str] = (),
        action: update_pb2.Action | None = None,
        **options: Unpack[BatchOptions],
    ) -> control_pb2.BatchUpdateParametersResponse:
        """As :meth:`Client.batch_update_parameters`."""
        request = batch_request(selector, jobs, changes, action, options)
        return await self._transport.run(_batch_update_parameters(request))

    async def get_batch(self, batch: str) -> batch_pb2.Batch:
        """As :meth:`Client.get_batch`."""
        return await self._transport.run(_get_batch(batch))

    def list_batches(self, *, page_size: int = 0) -> AsyncIterator[batch_pb2.Batch]:
        """As :meth:`Client.list_batches`, to be iterated over with ``async for``."""
        return self._transport.run_pages(_list_batches(page_size))

    def watch_batch(self, batch: str, *, patience: float | None = None) -> AsyncBatchWatch:
        """As :meth:`Client.watch_batch`, to be iterated over with ``async for``."""
        request = control_pb2.WatchBatchRequest(name=batch_name(batch))
        return AsyncBatchWatch(self._transport, request, patience=patience)

    async def cancel_batch(self, batch: str, *, reason: str = "") -> batch_pb2.Batch:
        """As :meth:`Client.cancel_batch`."""
        return await self._transport.run(_cancel_batch(batch, reason))
