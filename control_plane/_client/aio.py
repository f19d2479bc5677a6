"""The asynchronous client."""

from __future__ import annotations

from typing import TYPE_CHECKING

from control_plane._client.access import AsyncAccessCalls
from control_plane._client.batches import AsyncBatchCalls
from control_plane._client.jobs import AsyncJobCalls
from control_plane._client.target import CALL_SECONDS, CONTROL_PLANE
from control_plane._client.updates import AsyncUpdateCalls
from grpc_runtime.client.aio import AsyncTransport
from grpc_runtime.client.connection import AsyncConnection
from grpc_runtime.client.retry import RetryPolicy

if TYPE_CHECKING:
    import grpc

    from grpc_runtime.client.credentials import Credentials


class AsyncClient(
    AsyncJobCalls, AsyncUpdateCalls, AsyncBatchCalls, AsyncAccessCalls, AsyncConnection
):
    """A connection to a control plane, for the event loop that it is made in.

    Its methods are those of :class:`Client`, awaitable: the same arguments, answers and errors.
    Listings and watches are iterated over with ``async for``. Where a task that waits for a call
    is cancelled, the call is cancelled too.

    Raises:
        ValueError: The address is none.
        RuntimeError: No event loop is running.
    """

    def __init__(
        self,
        address: str | None = None,
        *,
        timeout: float = CALL_SECONDS,
        retry: RetryPolicy | None = None,
        credentials: Credentials | grpc.ChannelCredentials | None = None,
    ) -> None:
        """Makes a client, as :class:`Client` is made; it connects with the first call."""
        transport = AsyncTransport(
            CONTROL_PLANE,
            address,
            timeout=timeout,
            retry=retry or RetryPolicy(),
            credentials=credentials,
        )
        super().__init__(transport)
