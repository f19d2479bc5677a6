"""What health checks say of a control plane whose database is away: at the start, and later."""

from __future__ import annotations

import asyncio

import grpc
import pytest

from control_plane.store.errors import StoreError
from tests.support.health import NOT_SERVING, SERVING, health_is
from tests.support.plane import error_of, running_plane
from tests.support.postgres import PostgresServer
from tests.support.processes import free_port

SERVICE = "midcourse.control.v1.ControlPlaneService"


async def test_it_waits_for_its_database_and_tells_that_it_has_lost_it(
    postgres_server: PostgresServer,
) -> None:
    port = free_port()
    with postgres_server.empty_database() as address:
        postgres_server.stop()
        go_on = asyncio.Event()

        async def serve() -> None:
            async with running_plane(address, health_listen=f"127.0.0.1:{port}") as plane:
                await health_is(probe, SERVICE, SERVING)
                await plane.agent()
                postgres_server.stop()
                # The stream that is open shows it, without a call.
                await health_is(probe, SERVICE, NOT_SERVING)
                await health_is(probe, "", SERVING)
                error = await error_of(plane.update())
                assert error.reason == "STORE_UNAVAILABLE"
                postgres_server.start()
                await health_is(probe, SERVICE, SERVING)
                assert (await plane.update()).revision == 1
                go_on.set()

        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as probe:
            serving = asyncio.create_task(serve())
            await health_is(probe, "", NOT_SERVING)
            await health_is(probe, SERVICE, NOT_SERVING)
            assert not serving.done()
            postgres_server.start()
            await serving
            assert go_on.is_set()


async def test_it_gives_up_after_a_while() -> None:
    """And then nothing is left that answers health checks."""
    nobody, port = free_port(), free_port()
    with pytest.raises(StoreError, match=r"can not open the database .*, waited for 0\.1 s"):
        async with running_plane(
            f"postgresql://a:b@127.0.0.1:{nobody}/c",
            health_listen=f"127.0.0.1:{port}",
            database_patience=0.1,
        ):
            raise AssertionError("it serves")
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection("127.0.0.1", port)


async def test_what_time_does_not_mend_is_not_waited_for(postgres_server: PostgresServer) -> None:
    with pytest.raises(StoreError, match=r"does not exist\)$"):
        async with running_plane(postgres_server.address("nowhere"), database_patience=600.0):
            raise AssertionError("it serves")
