"""How long a live update takes from the call to the step boundary that applies it.

One real Trainer with steps of about a millisecond, its agent, and `midcourse serve`, each a
process; against the floor in `tests.bench.floor`, taken while the same trainer keeps a core busy.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import grpc

from midcourse.control.v1 import control_pb2 as api
from midcourse.control.v1 import update_pb2
from midcourse.control.v1.control_pb2_grpc import ControlPlaneServiceStub
from tests.bench.floor import PUT
from tests.bench.report import Row, percentile
from tests.support.processes import ROOT, Process, free_port, serve, until

JOB = "bench"


@contextlib.contextmanager
def floor(directory: Path, count: int) -> Iterator[tuple[grpc.Channel, subprocess.Popen[str]]]:
    """The floor's server and receiver."""

    def start(*arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "tests.bench.floor", *arguments],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    server = start("serve", str(directory / "floor.db"))
    try:
        assert server.stdout is not None
        address = f"127.0.0.1:{int(server.stdout.readline())}"
        receiver = start("receive", address, str(count))
        try:
            with grpc.insecure_channel(address) as channel:
                yield channel, receiver
        finally:
            receiver.kill()
            receiver.wait()
    finally:
        server.kill()
        server.wait()


def measure_floor(directory: Path, count: int) -> list[float]:
    """Milliseconds from the call to the other process, for each call."""
    warm = max(20, count // 10)
    with floor(directory, count + warm) as (channel, receiver):
        put: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(PUT)
        sent: dict[int, int] = {}
        for number in range(count + warm):
            if number >= warm:
                sent[number] = time.time_ns()
            put(str(number).encode())
            time.sleep(0.002)  # one at a time, as for the updates
        arrived, _ = receiver.communicate(timeout=30)
        times = {int(number): at for number, at in json.loads(arrived).items()}
    return [(times[number] - at) / 1e6 for number, at in sent.items()]


def measure_updates(stub: ControlPlaneServiceStub, count: int) -> list[float]:
    """Milliseconds from the call to the boundary that applied it, for each update."""
    taken = []
    warm = max(10, count // 10)
    for number in range(count + warm):
        request = api.UpdateParametersRequest(job=f"jobs/{JOB}")
        change = request.spec.changes.add(parameter="learning_rate")
        change.set.value.number = 1e-3 if number % 2 else 2e-3
        called = time.time_ns()
        revision = stub.UpdateParameters(request).update.revision
        wait = api.WaitUpdateRequest(name=f"jobs/{JOB}/updates/{revision}")
        update = stub.WaitUpdate(wait, timeout=30).update
        assert update.state == update_pb2.UPDATE_STATE_APPLIED, update
        if number >= warm:
            taken.append((update.applied.apply_time.ToNanoseconds() - called) / 1e6)
    return taken


def step_milliseconds(stub: ControlPlaneServiceStub) -> float:
    """How long a step of the job takes at present."""

    def progress() -> tuple[int, int]:
        job = stub.GetJob(api.GetJobRequest(name=f"jobs/{JOB}")).job
        return job.progress.step, job.progress.step_time.ToNanoseconds()

    first = progress()
    last = until(lambda: later if (later := progress())[0] > first[0] + 200 else None, "steps")
    return (last[1] - first[1]) / (last[0] - first[0]) / 1e6


def rows(directory: Path, *, quick: bool) -> list[Row]:
    """The rows of the live update."""
    count = 200 if quick else 1_000
    port = free_port()
    (directory / "s").mkdir(mode=0o700)
    server = serve(port, directory, log_level="warning", heartbeat_interval=1.0)
    trainer = Process(
        "trainer",
        ["-m", "tests.bench.light_trainer", str(directory), f"127.0.0.1:{port}", JOB],
        directory,
        MIDCOURSE_SOCKET_DIR=str(directory / "s"),
    )
    try:
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            stub = ControlPlaneServiceStub(channel)

            def running() -> bool:
                with contextlib.suppress(grpc.RpcError):
                    return stub.GetJob(api.GetJobRequest(name=f"jobs/{JOB}")).job.progress.step > 50
                return False

            until(running, f"a run\n{server.tail()}\n{trainer.tail()}", 90)
            # In turns, so that whatever else the machine does falls on both.
            floors: list[float] = []
            taken: list[float] = []
            for part in range(4):
                (directory / str(part)).mkdir()
                floors += measure_floor(directory / str(part), count // 4)
                taken += measure_updates(stub, count // 4)
            step = step_milliseconds(stub)
    finally:
        (directory / "stop").touch()
        with contextlib.suppress(AssertionError):
            trainer.wait(20)
        trainer.end()
        server.end()
    base = percentile(floors, 50)
    note = f"floor + one step of {step:.2f} ms"
    return [
        Row("live update, p50", "ms", base, percentile(taken, 50), 2 * base + step, f"2 × {note}"),
        Row(
            "live update, p99",
            "ms",
            percentile(floors, 99),
            percentile(taken, 99),
            4 * base + step,
            f"4 × p50 {note}",
        ),
    ]
