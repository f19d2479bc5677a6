"""How long a live update takes from the call to the step boundary that applies it.

One real Trainer with steps of about a millisecond, its agent, and `midcourse serve`, each a
process; against the floor in `tests.bench.floor`, taken while the same trainer keeps a core busy,
and against the same job on a WebSocket control server, `tests.bench.websocket_peer`.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import grpc

from midcourse.control.v1 import control_pb2 as api
from midcourse.control.v1 import update_pb2
from midcourse.control.v1.control_pb2_grpc import ControlPlaneServiceStub
from tests.bench import websocket_peer
from tests.bench.floor import PUT
from tests.bench.report import Row, percentile
from tests.support.processes import ROOT, Process, agents_of, free_port, serve, until

JOB = "bench"
NOTES = "agent.notes"


@dataclass(frozen=True)
class Run:
    """A steered run: how to call its control plane, the training process and its agent."""

    stub: ControlPlaneServiceStub
    pid: int
    agent: int


def start(module: str, *arguments: str) -> subprocess.Popen[str]:
    """Starts a module of the benchmarks that prints what is to be known of it."""
    return subprocess.Popen(
        [sys.executable, "-m", f"tests.bench.{module}", *arguments],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


@contextlib.contextmanager
def floor(directory: Path, count: int) -> Iterator[tuple[grpc.Channel, subprocess.Popen[str]]]:
    """The floor's server and receiver."""
    server = start("floor", "serve", str(directory / "floor.db"))
    try:
        assert server.stdout is not None
        address = f"127.0.0.1:{int(server.stdout.readline())}"
        receiver = start("floor", "receive", address, str(count))
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


@contextlib.contextmanager
def steered_run(directory: Path, *arguments: str, noting: bool = False) -> Iterator[Run]:
    """A control plane, and a real Trainer that it steers, on its way.

    Args:
        directory: For its files; with the notes of its agent, where it makes some.
        arguments: More arguments of the trainer.
        noting: Whether its agent notes when it comes by a failpoint.
    """
    port = free_port()
    sockets = str(directory / "s")
    Path(sockets).mkdir(mode=0o700)
    server = serve(port, directory, log_level="warning", heartbeat_interval=1.0)
    address = f"127.0.0.1:{port}"
    # Before the trainer, which would start one of its own.
    given = ["--job", JOB, "--control-plane", address, "--socket-dir", sockets]
    command = ["-m", "tests.bench.noting", "agent", str(directory / NOTES), *given]
    agent = Process("agent", command, directory) if noting else None
    trainer = Process(
        "trainer",
        ["-m", "tests.bench.light_trainer", str(directory), address, JOB, *arguments],
        directory,
        MIDCOURSE_SOCKET_DIR=sockets,
    )
    try:
        with grpc.insecure_channel(address) as channel:
            stub = ControlPlaneServiceStub(channel)

            def running() -> bool:
                with contextlib.suppress(grpc.RpcError):
                    return stub.GetJob(api.GetJobRequest(name=f"jobs/{JOB}")).job.progress.step > 9
                return False

            try:
                until(running, "a run", 300)
            except AssertionError as error:
                raise RuntimeError(f"{error}\n{server.tail()}\n{trainer.tail()}") from None
            pid = agents_of(sockets)[0] if agent is None else agent.pid
            yield Run(stub, trainer.pid, pid)
    finally:
        (directory / "stop").touch()
        with contextlib.suppress(ProcessLookupError):
            os.kill(trainer.pid, signal.SIGCONT)
        with contextlib.suppress(AssertionError):
            trainer.wait(20)
        trainer.end()
        server.end()
        if agent is not None:
            agent.end()
        for pid in agents_of(sockets):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


@contextlib.contextmanager
def websocket_run(directory: Path) -> Iterator[tuple[websocket_peer.Caller, int] | None]:
    """The same job on a WebSocket control server; None: something that it needs is missing."""
    if websocket_peer.missing():
        yield None
        return
    directory.mkdir()
    server = start("websocket_peer", "serve", str(directory / "settings.db"))
    trainer = None
    try:
        assert server.stdout is not None
        port = int(server.stdout.readline())
        trainer = Process(
            "trainer",
            [
                *("-m", "tests.bench.websocket_peer", "train"),
                *(str(directory), f"127.0.0.1:{port}"),
            ],
            directory,
        )
        try:
            yield websocket_peer.Caller(port), trainer.pid
        except TimeoutError as error:
            raise RuntimeError(f"the WebSocket server: {error}\n{trainer.tail()}") from error
    finally:
        if trainer is not None:
            trainer.end()
        server.kill()
        server.wait()


@contextlib.contextmanager
def standing_still(*pids: int) -> Iterator[None]:
    """Keeps processes from running, so that they take nothing from what is measured."""
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


def rows(directory: Path, *, quick: bool) -> Iterator[Row]:
    """The rows of the live update."""
    count = 200 if quick else 1_000
    with websocket_run(directory / "websocket") as other, steered_run(directory) as run:
        if other is not None:
            other[0].measure(1)  # waits until it trains
        others = [] if other is None else [other[1]]
        floors: list[float] = []
        taken: list[float] = []
        peers: list[float] = []
        for part in range(4):  # in turns, so that whatever else the machine does falls on all
            (directory / str(part)).mkdir()
            with standing_still(*others):
                floors += measure_floor(directory / str(part), count // 4)
                taken += measure_updates(run.stub, count // 4)
            if other is not None:
                with standing_still(run.pid):
                    peers += other[0].measure(count // 4)
        with standing_still(*others):
            step = step_milliseconds(run.stub)
    base = percentile(floors, 50)
    for percent, factor in ((50, 2), (99, 4)):
        yield Row(
            f"live update, p{percent}",
            "ms",
            percentile(floors, percent),
            percentile(taken, percent),
            factor * base + step,
            f"{factor} × the floor's p50 + one step of {step:.2f} ms",
        )
    without = f"not installed: {', '.join(websocket_peer.missing())}" if other is None else ""
    for percent in (50, 99):
        peer = percentile(peers, percent) if peers else None
        yield Row(
            f"live update, against a WebSocket server, p{percent}",
            "ms",
            None,
            percentile(taken, percent),
            peer,
            "FastAPI and uvicorn; as durable, the same job",
            peer,
            failure=without,
        )
