"""How many heartbeats a second a control plane takes in, each with a sample that is on disk.

Against a bare aio server that counts the messages of the same streams, with the same bytes in them.
The time ends with the acknowledgement of the last one: then all are on disk, and all can be
queried, which is checked. As load and server share the machine, what counts is how both compare.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import uvloop

from grpc_runtime.options import client_options
from midcourse.agent.v1 import session_pb2 as pb
from midcourse.control.v1 import control_pb2 as api
from midcourse.control.v1.control_pb2_grpc import ControlPlaneServiceStub
from tests.bench.floor import COUNT
from tests.bench.live_update import start
from tests.bench.report import Row
from tests.bench.scale_load import cpu_seconds
from tests.support.processes import free_port, serve
from tests.support.scripted_agent import hello

SESSION = "/midcourse.agent.v1.AgentService/Session"
STREAMS = 8
SHARE = 0.5


@dataclass(frozen=True)
class Taken:
    """Heartbeats a second, and the microseconds of processor time that each took the server."""

    rate: float
    micros: float


def messages(job: str, first: int, count: int) -> list[bytes]:
    """Hello, and heartbeats with one sample each."""
    made = [pb.SessionRequest(sequence=1, hello=hello(job, start_step=first)).SerializeToString()]
    for number in range(count):
        step = first + number + 1
        request = pb.SessionRequest(sequence=number + 2)
        request.heartbeat.progress.step = step
        request.heartbeat.phase = pb.TRAINER_PHASE_TRAINING
        column = request.heartbeat.metrics.add(name="loss", steps=[step], values=[1 / step])
        column.time_micros.append(time.time_ns() // 1_000)
        made.append(request.SerializeToString())
    return made


async def pump(call: Any, given: Sequence[bytes]) -> float:
    """Says all of it, and returns when the last was acknowledged."""
    welcome = await call.read()
    assert pb.SessionResponse.FromString(welcome).HasField("welcome"), welcome

    async def write() -> None:
        for message in given:
            await call.write(message)

    writing = asyncio.create_task(write())
    last = len(given) + 1
    try:
        while True:
            answer = await call.read()
            assert answer is not grpc.aio.EOF, await call.details()
            answer = pb.SessionResponse.FromString(answer)
            assert not answer.HasField("item_error"), answer
            if answer.HasField("acknowledgement") and answer.acknowledgement.sequence >= last:
                return time.perf_counter()
    finally:
        writing.cancel()
        await asyncio.gather(writing, return_exceptions=True)


async def measure(address: str, method: str, pid: int, part: int, count: int) -> Taken:
    """Has so many heartbeats taken in, by streams of their own jobs, side by side."""
    given = [messages(f"intake-{part}-{each}", 20, count) for each in range(STREAMS)]
    async with contextlib.AsyncExitStack() as stack:
        calls = []
        for each in given:
            options = [*client_options(), ("grpc.use_local_subchannel_pool", 1)]
            channel = await stack.enter_async_context(
                grpc.aio.insecure_channel(address, options=options)
            )
            stream: Any = channel.stream_stream(method)
            calls.append(stream())
            await calls[-1].write(each[0])
        await asyncio.sleep(0.2)  # for the welcomes
        used, begun = cpu_seconds(pid), time.perf_counter()
        ends = await asyncio.gather(
            *(pump(call, each[1:]) for call, each in zip(calls, given, strict=True))
        )
        used = cpu_seconds(pid) - used
        for call in calls:
            call.cancel()
    total = count * STREAMS
    return Taken(total / (max(ends) - begun), used / total * 1e6)


def queried(address: str, parts: int) -> int:
    """How many of the samples are found."""
    found = 0
    with grpc.insecure_channel(address, options=client_options()) as channel:
        stub = ControlPlaneServiceStub(channel)
        for part in range(parts):
            for each in range(STREAMS):
                asked = api.QueryMetricsRequest(job=f"jobs/intake-{part}-{each}", names=["loss"])
                found += sum(one.statistics.count for one in stub.QueryMetrics(asked).series)
    return found


def rows(directory: Path, *, quick: bool) -> Iterator[Row]:
    """The row of the heartbeat intake."""
    parts, count = (2, 1_000) if quick else (4, 5_000)
    port = free_port()
    server = serve(port, directory, log_level="warning", heartbeat_interval=60.0)
    floor = start("floor", "count")
    try:
        assert floor.stdout is not None
        bare = f"127.0.0.1:{int(floor.stdout.readline())}"
        address = f"127.0.0.1:{port}"
        with grpc.insecure_channel(address) as channel:
            grpc.channel_ready_future(channel).result(60)
        floors, ours = [], []
        for part in range(parts):
            floors.append(uvloop.run(measure(bare, COUNT, floor.pid, part, count)))
            ours.append(uvloop.run(measure(address, SESSION, server.pid, part, count)))
        found, sent = queried(address, parts), parts * count * STREAMS
    finally:
        floor.kill()
        floor.wait()
        server.end()
    if found != sent:
        raise RuntimeError(f"{found} of {sent} samples are found")
    base, best = max(each.rate for each in floors), max(each.rate for each in ours)
    yield Row(
        "heartbeats taken in, each with a sample on disk",
        "/s",
        base,
        best,
        SHARE * base,
        f"{SHARE:.0%} of a bare stream; the server's processor time of each: "
        f"{min(each.micros for each in ours):.0f} µs against "
        f"{min(each.micros for each in floors):.0f} µs; all {sent:,} samples are found",
        at_least=True,
    )
