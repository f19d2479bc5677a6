"""The blocking client."""

from __future__ import annotations

from typing import TYPE_CHECKING

from control_plane._client.access import AccessCalls
from control_plane._client.batches import BatchCalls
from control_plane._client.jobs import JobCalls
from control_plane._client.target import CALL_SECONDS, CONTROL_PLANE
from control_plane._client.updates import UpdateCalls
from grpc_runtime.client.connection import BlockingConnection
from grpc_runtime.client.retry import RetryPolicy
from grpc_runtime.client.transport import Transport

if TYPE_CHECKING:
    import grpc

    from grpc_runtime.client.credentials import Credentials


class Client(JobCalls, UpdateCalls, BatchCalls, AccessCalls, BlockingConnection):
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
        timeout: float = CALL_SECONDS,
        retry: RetryPolicy | None = None,
        credentials: Credentials | grpc.ChannelCredentials | None = None,
    ) -> None:
        """Makes a client; it connects with the first call.

        Args:
            address: ``host:port`` or ``unix:/path``; by default what the environment variable
                MIDCOURSE_CONTROL_PLANE says, else 127.0.0.1:50051.
            timeout: Seconds that a call may take, all its tries together. Waits and watches have
                their own limits.
            retry: When to try again; by default 4 tries within about a second.
            credentials: Token, authorities and certificate to connect with (see
                :class:`Credentials`); by default what the environment says.
        """
        transport = Transport(
            CONTROL_PLANE,
            address,
            timeout=timeout,
            retry=retry or RetryPolicy(),
            credentials=credentials,
        )
        super().__init__(transport)
