"""Whether anybody listens at an address."""

from __future__ import annotations

import asyncio
import socket

import pytest

from grpc_runtime.client.knocking import nobody_listens


async def test_a_server_is_told_from_nobody() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        there = f"127.0.0.1:{server.getsockname()[1]}"
        assert not await nobody_listens(there)
    assert await nobody_listens(there)


@pytest.mark.parametrize("target", ["dns:///a:1", "unix:/tmp/x", "ipv4:1.2.3.4:5,6.7.8.9:5", "a"])
async def test_what_only_grpc_can_read_is_left_to_it(target: str) -> None:
    assert not await nobody_listens(target)


async def test_what_a_proxy_may_reach_is_left_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://proxy:3128")

    async def connect(*_: object) -> None:
        raise ConnectionRefusedError

    monkeypatch.setattr(asyncio.get_running_loop(), "create_connection", connect)
    assert not await nobody_listens("control-plane.example:50051")
    assert await nobody_listens("127.0.0.1:50051")
    monkeypatch.delenv("http_proxy")
    assert await nobody_listens("control-plane.example:50051")
