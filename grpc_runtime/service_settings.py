"""What every service here can be set to; each adds what is its own."""

from __future__ import annotations

from pydantic import Field

from grpc_runtime.logging import LogFormat, LogLevel
from grpc_runtime.settings import Settings


class ServiceSettings(Settings):
    """Settings of a gRPC service."""

    listen: str = Field(description="Address to listen on: host:port, or unix:PATH.")
    insecure: bool = Field(
        default=False,
        description="Listen beyond loopback without TLS and authentication all the same.",
    )
    max_message_bytes: int = Field(
        default=4 * 1024 * 1024, ge=65_536, description="Largest gRPC message, in bytes."
    )
    grace: float = Field(
        default=10.0,
        ge=0,
        le=600,
        description="Seconds that calls get to end when the server stops.",
    )
    log_level: LogLevel = Field(default="info", description="Least severe events to log.")
    log_format: LogFormat = Field(
        default="auto", description="json, console, or auto: console on a terminal, else JSON."
    )
