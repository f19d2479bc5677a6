"""Channel arguments that a server and its clients have to agree on."""

from __future__ import annotations

from typing import Final

ChannelOptions = tuple[tuple[str, int | str], ...]

MAX_MESSAGE_BYTES: Final = 4 * 1024 * 1024
"""Largest message either side takes unless told otherwise; gRPC's own default."""

_KEEPALIVE_INTERVAL_MS: Final = 20_000
_KEEPALIVE_TIMEOUT_MS: Final = 10_000
# A server answers clients that ping more often than this with ENHANCE_YOUR_CALM and drops them.
# Half the clients' interval leaves room for pings that travel at different speeds.
_SHORTEST_PING_INTERVAL_MS: Final = _KEEPALIVE_INTERVAL_MS // 2

_KEEPALIVE: ChannelOptions = (
    ("grpc.keepalive_time_ms", _KEEPALIVE_INTERVAL_MS),
    ("grpc.keepalive_timeout_ms", _KEEPALIVE_TIMEOUT_MS),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
)


def _message_limits(max_message_bytes: int) -> ChannelOptions:
    return (
        ("grpc.max_receive_message_length", max_message_bytes),
        ("grpc.max_send_message_length", max_message_bytes),
    )


def server_options(*, max_message_bytes: int = MAX_MESSAGE_BYTES) -> ChannelOptions:
    """Returns the arguments for a server.

    Args:
        max_message_bytes: Largest message to take or to send; larger ones fail with
            RESOURCE_EXHAUSTED.
    """
    return (
        *_message_limits(max_message_bytes),
        *_KEEPALIVE,
        ("grpc.http2.min_ping_interval_without_data_ms", _SHORTEST_PING_INTERVAL_MS),
        ("grpc.http2.min_recv_ping_interval_without_data_ms", _SHORTEST_PING_INTERVAL_MS),
        # With port sharing a second server on the same port would take every other connection.
        ("grpc.so_reuseport", 0),
    )


def client_options(*, max_message_bytes: int = MAX_MESSAGE_BYTES) -> ChannelOptions:
    """Returns the arguments for a channel that notices a dead server within half a minute.

    Args:
        max_message_bytes: Largest message to take or to send.
    """
    return (*_message_limits(max_message_bytes), *_KEEPALIVE)
