"""The asynchronous client."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING, Self

from control_plane._client.access import AsyncAccessCalls
from control_plane._client.batches import AsyncBatchCalls
from control_plane._client.jobs import AsyncJobCalls
from control_plane._client.target import CALL_SECONDS, CONTROL_PLANE
from control_plane._client.updates import AsyncUpdateCalls
from grpc_runtime.client.aio import AsyncTransport
from grpc_runtime.client.retry import RetryPolicy

if TYPE_CHECKING:
    import grpc

    from grpc_runtime.client.credentials import Credentials


class AsyncClient(AsyncJobCalls, AsyncUpdateCalls, AsyncBatchCalls, AsyncAccessCalls):
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
        self._transport = AsyncTransport(
            CONTROL_PLANE,
            address,
            timeout=timeout,
            retry=retry or RetryPolicy(),
            credentials=credentials,
        )

    @property
    def address(self) -> str:
        """Where the control plane is."""
        return self._transport.address

    async def close(self) -> None:
        """As :meth:`Client.close`."""
        await self._transport.close()

    def with_metadata(self, metadata: Sequence[tuple[str, str | bytes]]) -> Self:
        """As :meth:`Client.with_metadata`."""
        other = copy.copy(self)
        other._transport = self._transport.with_metadata(metadata)  # noqa: SLF001 - one's own
        return other

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()
