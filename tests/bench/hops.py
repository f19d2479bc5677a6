"""Where the time of a live update goes: a profile of its way, hop by hop.

The same processes as for the live update, in which each failpoint that is come by is written down
with the time, by the one clock of the machine: see `tests.bench.noting`.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from pathlib import Path

import grpc

from midcourse.control.v1 import control_pb2 as api
from midcourse.control.v1.control_pb2_grpc import ControlPlaneServiceStub
from tests.bench.live_update import JOB, step_milliseconds
from tests.bench.noting import read
from tests.bench.report import Hop, percentile
from tests.support.processes import Process, free_port, until

WAY = (
    ("called", ""),
    ("server.called", "call to the server's method"),
    ("commit.before", "checks and rules, to the commit"),
    ("commit.after", "commit, on disk"),
    ("wakeup.before", "back from the writer's thread"),
    ("session.deliver", "wake-up, and reading what is new of the job"),
    ("agent.pass_on", "down the stream, to the agent"),
    ("trainer.apply", "over the socket, and to the end of a step"),
    ("trainer.applied", "all of its changes"),
    ("trainer.tell", "read back; the step that uses it"),
    ("agent.outcome", "over the socket, to the agent"),
    ("session.outcome", "up the stream, to the server"),
    ("commit.before", "rules, to the commit of what came of it"),
    ("commit.after", "commit, on disk"),
    ("answered", "wake-up of who waits, and the answer to it"),
)
"""Points of the way, and what lies before each."""


def updates(stub: ControlPlaneServiceStub, count: int) -> Iterator[tuple[int, int]]:
    """When each of some updates was called for, and when its outcome was told."""
    for number in range(count):
        request = api.UpdateParametersRequest(job=f"jobs/{JOB}")
        change = request.spec.changes.add(parameter="learning_rate")
        change.set.value.number = 1e-3 if number % 2 else 2e-3
        called = time.time_ns()
        revision = stub.UpdateParameters(request).update.revision
        wait = api.WaitUpdateRequest(name=f"jobs/{JOB}/updates/{revision}")
        stub.WaitUpdate(wait, timeout=30)
        yield called, time.time_ns()
        time.sleep(0.01)


def stretches(called: int, answered: int, notes: list[tuple[int, str]]) -> list[float] | None:
    """Milliseconds between the points of the way; None: one of them is missing."""
    times = [called]
    within = iter([note for note in notes if called <= note[0] <= answered])
    for name, _ in WAY[1:-1]:
        at = next((at for at, found in within if found == name), None)
        if at is None:
            return None
        times.append(at)
    times.append(answered)
    return [(after - before) / 1e6 for before, after in itertools.pairwise(times)]


def rows(directory: Path, *, quick: bool) -> Iterator[Hop]:
    """The stretches of the way."""
    port, sockets = free_port(), directory / "s"
    sockets.mkdir(mode=0o700)
    address = f"127.0.0.1:{port}"
    given = {
        "serve": [
            *("serve", f"--listen={address}", f"--database={directory / 'control.db'}"),
            *("--log-level=warning", "--heartbeat-interval=1"),
        ],
        "agent": ["--job", JOB, "--control-plane", address, "--socket-dir", str(sockets)],
        "train": [str(directory), address, JOB],
    }
    started: list[Process] = []
    try:
        for name, arguments in given.items():
            noted = str(directory / f"{name}.notes")
            started.append(
                Process(
                    name,
                    ["-m", "tests.bench.noting", name, noted, *arguments],
                    directory,
                    MIDCOURSE_SOCKET_DIR=str(sockets),
                )
            )
        with grpc.insecure_channel(address) as channel:
            stub = ControlPlaneServiceStub(channel)

            def running() -> bool:
                try:
                    return stub.GetJob(api.GetJobRequest(name=f"jobs/{JOB}")).job.progress.step > 50
                except grpc.RpcError:
                    return False

            try:
                until(running, "a run", 300)
            except AssertionError as error:
                logs = "\n".join(process.tail() for process in started)
                raise RuntimeError(f"{error}\n{logs}") from None
            calls = list(updates(stub, 80 if quick else 500))[10:]
            step = step_milliseconds(stub)
    finally:
        for process in reversed(started):
            process.end()
    notes = read(*directory.glob("*.notes"))
    found = [each for call in calls if (each := stretches(*call, notes)) is not None]
    if len(found) < len(calls) / 2:
        raise RuntimeError(f"only {len(found)} of {len(calls)} updates came by every point")
    for (_, what), taken in zip(WAY[1:], zip(*found, strict=True), strict=True):
        yield Hop(what, percentile(taken, 50), percentile(taken, 99))
    whole = [sum(each) for each in found]
    yield Hop(
        f"all of it, with steps of {step:.2f} ms", percentile(whole, 50), percentile(whole, 99)
    )
