"""Health checks: what anybody may ask, and so what nobody may harm a server with."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from grpc_runtime.errors import StatusError, from_rpc_error
from grpc_runtime.health import MOST_WATCHES, MOST_WATCHES_OF_ONE_HOST, HealthServicer
from grpc_runtime.server import Service

SAYS = health_pb2.HealthCheckResponse
REQUEST = health_pb2.HealthCheckRequest


def caller(host: int = 1) -> Any:
    """The context of a call."""
    return SimpleNamespace(peer=lambda: f"ipv4:192.0.2.{host}:50000")


async def status(watch: Any) -> int:
    """What a watcher is told next."""
    return int((await anext(watch)).status)


async def test_a_watcher_that_does_not_read_holds_up_nobody() -> None:
    server = Service("127.0.0.1:0", domain="test.example")
    health = server._health
    health.set("a", SAYS.SERVING)
    watch = health.Watch(REQUEST(service="a"), caller())
    assert await status(watch) == SAYS.SERVING
    # It stands where it would stand while its message can not be sent.
    health.set("a", SAYS.NOT_SERVING)
    health.set("a", SAYS.SERVING)
    health.set("a", SAYS.NOT_SERVING)
    assert (await health.Check(REQUEST(service="a"), caller())).status == SAYS.NOT_SERVING
    assert await status(watch) == SAYS.NOT_SERVING
    health.drain()
    health.set("a", SAYS.SERVING)
    health.close()
    assert [each async for each in watch] == []


async def test_one_still_being_told_a_status_is_told_the_last_before_the_end() -> None:
    health = HealthServicer()
    watch = health.Watch(REQUEST(), caller())
    assert await status(watch) == SAYS.SERVING
    health.drain()
    health.close()
    assert [each.status async for each in watch] == [SAYS.NOT_SERVING]


async def test_a_watch_of_what_there_is_not_ends_at_once() -> None:
    health = HealthServicer()
    watch = health.Watch(REQUEST(service="made up"), caller())
    assert [each.status async for each in watch] == [SAYS.SERVICE_UNKNOWN]


async def test_there_is_a_limit_to_watches_which_those_that_end_make_room_below() -> None:
    health = HealthServicer()

    async def begin(host: int) -> Any:
        watch = health.Watch(REQUEST(), caller(host))
        await anext(watch)
        return watch

    watches = [await begin(1) for _ in range(MOST_WATCHES_OF_ONE_HOST)]
    with pytest.raises(StatusError, match="has 100 health watches open"):
        await begin(1)
    for host in range(2, 2 + MOST_WATCHES // MOST_WATCHES_OF_ONE_HOST - 1):
        watches += [await begin(host) for _ in range(MOST_WATCHES_OF_ONE_HOST)]
    with pytest.raises(StatusError, match="has 500 health watches open") as refused:
        await begin(99)
    assert refused.value.reason == "TOO_MANY_OPEN_CALLS"
    await watches[0].aclose()
    await begin(99)


async def test_over_a_channel(serve: Any) -> None:
    async with serve() as (_, channel):
        stub: Any = health_pb2_grpc.HealthStub(channel)
        messages: Any = health_pb2  # whose type stubs do not know them yet
        listed = await stub.List(messages.HealthListRequest())
        assert {name: each.status for name, each in listed.statuses.items()} == {
            "": SAYS.SERVING,
            "test.Echo": SAYS.SERVING,
        }
        assert [each.status async for each in stub.Watch(REQUEST(service="test.Other"))] == [
            SAYS.SERVICE_UNKNOWN
        ]
        for call in (stub.Check(REQUEST(service="x" * 2_000)), stub.Watch(_padded()).read()):
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await call
            error = from_rpc_error(refused.value)
            assert error.code is grpc.StatusCode.INVALID_ARGUMENT
            assert "allowed for health checks: 1000" in error.message


def _padded() -> Any:
    """A request that is large for a field that nobody knows."""
    return REQUEST.FromString(b"\x7a\xd0\x0f" + bytes(2_000))
