"""The methods of ControlPlaneService that are about batches."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from control_plane.domain.names import parse_batch
from control_plane.rpc import convert_batch
from control_plane.rpc.streaming import send_all
from grpc_runtime.auth import current_principal, current_trace_parent
from grpc_runtime.paging import page_size, read_token, write_token
from midcourse.control.v1 import control_pb2 as pb
from midcourse.control.v1 import control_pb2_grpc

if TYPE_CHECKING:
    import grpc

    from control_plane.services.batches import BatchService


class BatchMethods(control_pb2_grpc.ControlPlaneServiceServicer):
    """A part of `ControlPlaneServicer`."""

    _batches: BatchService
    _watch_patience: float

    async def BatchUpdateParameters(
        self, request: pb.BatchUpdateParametersRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> pb.BatchUpdateParametersResponse:
        """Asks for the same change of many jobs."""
        asked = convert_batch.submission_of(
            request, current_principal().name, current_trace_parent()
        )
        news = await self._batches.submit(asked)
        return pb.BatchUpdateParametersResponse(
            batch=convert_batch.batch(news.view),
            items=[convert_batch.item(item) for item in news.items],
        )

    async def GetBatch(
        self, request: pb.GetBatchRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> pb.GetBatchResponse:
        """Returns a batch."""
        view = await self._batches.get(parse_batch(request.name, "name"))
        return pb.GetBatchResponse(batch=convert_batch.batch(view))

    async def ListBatches(
        self, request: pb.ListBatchesRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> pb.ListBatchesResponse:
        """Lists batches, newest first."""
        beyond = read_token(request.page_token, "batches")
        page = await self._batches.list(
            beyond=beyond if isinstance(beyond, int) else None,
            limit=page_size(request.page_size),
        )
        return pb.ListBatchesResponse(
            batches=[convert_batch.batch(view) for view in page.batches],
            next_page_token=write_token(page.next_beyond, "batches"),
        )

    async def WatchBatch(  # type: ignore[override]  # the stub knows generators only
        self, request: pb.WatchBatchRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> None:
        """Streams what becomes of a batch."""
        news = self._batches.watch(parse_batch(request.name, "name"))
        await send_all(context, news, convert_batch.news, patience=self._watch_patience)

    async def CancelBatch(
        self, request: pb.CancelBatchRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> pb.CancelBatchResponse:
        """Withdraws those updates of a batch that are not in force yet."""
        view = await self._batches.cancel(
            parse_batch(request.name, "name"), current_principal().name, request.reason
        )
        return pb.CancelBatchResponse(batch=convert_batch.batch(view))
