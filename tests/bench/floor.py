"""The floor of a live update: what cannot be avoided, with nothing of ours in it.

A bare aio unary call that commits one row with fsync and pushes one message to another process
over a bidirectional stream. Run as a module it is either of the two other processes:

    python -m tests.bench.floor serve DATABASE     prints its port
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

PUT = "/floor.Floor/Put"
SESSION = "/floor.Floor/Session"


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

    server = grpc.aio.server()
    handlers: dict[str, Any] = {
        "Put": grpc.unary_unary_rpc_method_handler(put),
        "Session": grpc.stream_stream_rpc_method_handler(session),
    }
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
    else:
        uvloop.run(receive(sys.argv[2], int(sys.argv[3])))
