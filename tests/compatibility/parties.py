"""Those who take part in a conversation between versions, each known by its bytes alone."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import grpc

from trainer_agent.agent.job_agent import JobAgent
from trainer_agent.agent.ledger import AgentIdentity
from trainer_agent.link.address import LinkAddress, locate
from trainer_agent.link.framing import FrameDecoder, frame

METHOD = "/midcourse.agent.v1.AgentService/Session"
BOUND_SECONDS = 30.0

Serve = Callable[[AsyncIterator[bytes], Any], AsyncIterator[bytes]]


class BytesServer:
    """A server of sessions that knows no messages: what it does with bytes is handed in."""

    def __init__(self, serve: Serve) -> None:
        handler: Any = grpc.stream_stream_rpc_method_handler(serve)
        service, name = METHOD.strip("/").split("/")
        self._server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        self._server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler(service, {name: handler}),)
        )
        self._port = self._server.add_insecure_port("127.0.0.1:0")

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self._port}"

    async def __aenter__(self) -> BytesServer:
        await self._server.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._server.stop(None)


class LinkEnd:
    """The trainer's end of the local link, as frames."""

    def __init__(self, address: LinkAddress) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.setblocking(False)
        self._socket.connect(str(address.socket))
        self._decoder = FrameDecoder()
        self._loop = asyncio.get_running_loop()
        self._waiting: list[bytes] = []

    async def say(self, raw: bytes) -> None:
        await self._loop.sock_sendall(self._socket, frame(raw))

    async def hear(self) -> bytes:
        """The next message.

        Raises:
            ConnectionError: The agent has hung up.
        """
        async with asyncio.timeout(BOUND_SECONDS):
            while not self._waiting:
                data = await self._loop.sock_recv(self._socket, 1 << 16)
                if not data:
                    raise ConnectionError("the agent has hung up")
                self._waiting += self._decoder.feed(data)
        return self._waiting.pop(0)

    def close(self) -> None:
        self._socket.close()


@contextlib.asynccontextmanager
async def present_agent(job: str, control_plane: str, folder: Path) -> AsyncIterator[LinkAddress]:
    """An agent of the present version, which listens while the block runs."""
    address = locate(job, folder)
    agent = JobAgent(
        job_id=job,
        control_plane=control_plane,
        address=address,
        identity=AgentIdentity("agent-1", "0.1.0", "gpu-01"),
        linger=0.5,
    )
    serving = asyncio.create_task(agent.run())
    async with asyncio.timeout(BOUND_SECONDS):
        while not address.socket.exists():
            assert not serving.done()
            await asyncio.sleep(0)
    try:
        yield address
    finally:
        agent.stop("the test is over")
        async with asyncio.timeout(BOUND_SECONDS):
            await serving
