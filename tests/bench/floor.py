"""The floor of a live update: what cannot be avoided, with nothing of ours in it.

A bare aio unary call that commits one row with fsync and pushes one message to another process
over a bidirectional stream. And that of the intake of heartbeats: a bare stream whose messages are
counted. Run as a module it is one of the other processes:

    python -m tests.bench.floor serve DATABASE     prints its port
    python -m tests.bench.floor count    prints its port
    python -m tests.bench.floor receive ADDRESS COUNT    prints {number: nanoseconds}
"""

from __future__ import annotations

import asyncio
import json
import sqlite3
import sys
import time
from collections.abc import AsyncIterator
from typing import Any

import grpc
import uvloop

from midcourse.agent.v1 import session_pb2 as pb

PUT = "/floor.Floor/Put"
SESSION = "/floor.Floor/Session"
COUNT = "/floor.Floor/Count"


async def serve(path: str) -> None:
    database = sqlite3.connect(path, isolation_level=None)
    database.execute("PRAGMA journal_mode=WAL")
    database.execute("PRAGMA synchronous=FULL")
    database.execute("CREATE TABLE rows (number INTEGER PRIMARY KEY, payload BLOB)")
    pushed: asyncio.Queue[bytes] = asyncio.Queue()

    async def put(request: bytes, _: Any) -> bytes:
        database.execute("INSERT INTO rows (payload) VALUES (?)", (request,))
        pushed.put_nowait(request)
        return b""

    async def session(_: AsyncIterator[bytes], context: Any) -> None:
        while True:
            await context.write(await pushed.get())

    await listen(
        {
            "Put": grpc.unary_unary_rpc_method_handler(put),
            "Session": grpc.stream_stream_rpc_method_handler(session),
        }
    )


async def count() -> None:
    async def take(requests: AsyncIterator[bytes], context: Any) -> None:
        await context.write(pb.SessionResponse(welcome=pb.Welcome()).SerializeToString())
        taken = 0
        async for _ in requests:
            taken += 1
            if taken % 100 == 1:  # every now and then, as acknowledgements are that are coalesced
                said = pb.SessionResponse(acknowledgement=pb.Acknowledgement(sequence=taken))
                await context.write(said.SerializeToString())

    await listen({"Count": grpc.stream_stream_rpc_method_handler(take)})


async def listen(handlers: dict[str, Any]) -> None:
    server = grpc.aio.server()
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler("floor.Floor", handlers),)
    )
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(port, flush=True)
    await server.wait_for_termination()


async def receive(address: str, count: int) -> None:
    arrived: dict[int, int] = {}
    async with grpc.aio.insecure_channel(address) as channel:
        stream: Any = channel.stream_stream(SESSION)
        call = stream(iter_nothing())
        while len(arrived) < count:
            message: bytes = await call.read()
            arrived[int(message)] = time.time_ns()
        call.cancel()
    print(json.dumps(arrived), flush=True)


async def iter_nothing() -> AsyncIterator[bytes]:
    await asyncio.Event().wait()
    yield b""


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        uvloop.run(serve(sys.argv[2]))
    elif sys.argv[1] == "count":
        uvloop.run(count())
    else:
        uvloop.run(receive(sys.argv[2], int(sys.argv[3])))
