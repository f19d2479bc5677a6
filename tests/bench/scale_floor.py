"""The floor of one update of many jobs, with nothing of ours in it.

A bare aio server pushes one message on each of many open streams, waits for an answer on each,
and commits what was answered in one transaction. Run as a module it is one of the processes:

    python -m tests.bench.scale_floor serve DATABASE     prints its port
    python -m tests.bench.scale_floor answer ADDRESS COUNT     prints "ready"
"""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import uvloop

from grpc_runtime.process import prepare_for_many
from tests.bench.floor import listen
from tests.support.processes import ROOT

SESSION = "/floor.Floor/Session"
UPDATE = "/floor.Floor/Update"
PAYLOAD = bytes(250)
"""About as long as a delivery of one change."""
_CONNECTING_AT_ONCE = 50


@dataclass(frozen=True)
class Floor:
    """Two processes with open streams between them.

    Attributes:
        server: Process id of the server.
        client: Process id of what answers.
    """

    server: int
    client: int
    _address: str

    def update(self) -> float:
        """Milliseconds that one update of all takes."""
        with grpc.insecure_channel(self._address) as channel:
            call: Any = channel.unary_unary(UPDATE)
            began = time.perf_counter()
            call(b"", timeout=60)
            return (time.perf_counter() - began) * 1e3


@contextlib.contextmanager
def floor(streams: int, directory: Path) -> Iterator[Floor]:
    """Has the two processes run while the block runs."""
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(_process("serve", str(directory / "floor.db")))
        address = f"127.0.0.1:{_line(server)}"
        client = stack.enter_context(_process("answer", address, str(streams)))
        _line(client)
        yield Floor(server.pid, client.pid, address)


@contextlib.contextmanager
def _process(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.bench.scale_floor", *arguments],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def _line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    line = process.stdout.readline().strip()
    assert line, f"the floor ended with {process.wait()}"
    return line


async def serve(path: str) -> None:
    database = sqlite3.connect(path, isolation_level=None)
    database.execute("PRAGMA journal_mode=WAL")
    database.execute("PRAGMA synchronous=FULL")
    database.execute("CREATE TABLE rows (number INTEGER PRIMARY KEY, payload BLOB)")
    streams: list[asyncio.Queue[bytes]] = []
    answers: asyncio.Queue[bytes] = asyncio.Queue()

    async def session(requests: AsyncIterator[bytes], context: Any) -> None:
        pushed: asyncio.Queue[bytes] = asyncio.Queue()

        async def push() -> None:
            while True:
                await context.write(await pushed.get())

        pushing = asyncio.create_task(push())
        streams.append(pushed)
        try:
            async for answer in requests:
                answers.put_nowait(answer)
        finally:
            pushing.cancel()

    async def update(_request: bytes, _context: Any) -> bytes:
        for pushed in streams:
            pushed.put_nowait(PAYLOAD)
        rows = [(await answers.get(),) for _ in streams]
        database.execute("BEGIN")
        database.executemany("INSERT INTO rows (payload) VALUES (?)", rows)
        database.execute("COMMIT")
        return b""

    prepare_for_many()
    await listen(
        {
            "Session": grpc.stream_stream_rpc_method_handler(session),
            "Update": grpc.unary_unary_rpc_method_handler(update),
        }
    )


async def answer(address: str, count: int) -> None:
    prepare_for_many()
    connecting = asyncio.Semaphore(_CONNECTING_AT_ONCE)
    left = count

    async def stream(channel: grpc.aio.Channel) -> None:
        async with connecting:
            await channel.channel_ready()
            call: Any = channel.stream_stream(SESSION)()
            await call.wait_for_connection()
        nonlocal left
        left -= 1
        if not left:
            print("ready", flush=True)
        while True:
            await call.write(await call.read())

    channels = [
        grpc.aio.insecure_channel(address, [("grpc.use_local_subchannel_pool", 1)])
        for _ in range(count)
    ]
    async with asyncio.TaskGroup() as group:
        for channel in channels:
            group.create_task(stream(channel))


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        uvloop.run(serve(sys.argv[2]))
    else:
        uvloop.run(answer(sys.argv[2], int(sys.argv[3])))
