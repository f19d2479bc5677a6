"""What every typed client is: a transport that can be closed, and asked with another's metadata."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from collections.abc import Sequence

    from grpc_runtime.client.aio import AsyncTransport
    from grpc_runtime.client.transport import Transport


class BlockingConnection:
    """A connection to a service; safe to share between threads."""

    def __init__(self, transport: Transport) -> None:
        """Takes over a transport."""
        self._transport = transport

    @property
    def address(self) -> str:
        """Where the service is."""
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


class AsyncConnection:
    """A connection to a service, for the event loop that it is made in."""

    def __init__(self, transport: AsyncTransport) -> None:
        """Takes over a transport."""
        self._transport = transport

    @property
    def address(self) -> str:
        """Where the service is."""
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
