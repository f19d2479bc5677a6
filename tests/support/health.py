"""What health checks say of a server."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


async def health_is(probe: grpc.aio.Channel, name: str, status: Any) -> None:
    """Waits until a health check says so; a service that is not there yet does not serve."""
    stub: Any = health_pb2_grpc.HealthStub(probe)
    found = None
    async with asyncio.timeout(60):
        while found != status:
            try:
                asked = health_pb2.HealthCheckRequest(service=name)
                found = (await stub.Check(asked, wait_for_ready=True)).status
            except grpc.aio.AioRpcError as error:
                if error.code() is not grpc.StatusCode.NOT_FOUND:
                    raise
                found = NOT_SERVING
            await asyncio.sleep(0.01)  # between two looks
