"""What a run of tests.bench.scale is to measure, and the control plane it measures."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc

from grpc_runtime.options import client_options
from midcourse.control.v1.control_pb2_grpc import ControlPlaneServiceStub
from tests.support.processes import Process, free_port, serve
from trainer_agent.simulate.options import SimulateOptions

LABELS = {"load": "bench"}
SELECTOR = "load=bench"
# The step that a batch waits for, so that it is no part worth mentioning of what is measured.
STEP_SECONDS = 0.01


@dataclass(frozen=True)
class Plan:
    """What is measured, and for how long.

    Attributes:
        few: Agents of the first part; 0: it is left out.
        many: Agents that the second part would come to.
        steps: In how many equal steps it does.
        updates: Updates whose latency is taken, in each part.
        batches: Selector updates, in each part.
        seconds: How long all steps together are watched, in seconds.
        heartbeat: From one heartbeat of an agent to the next, in seconds.
        connections: Connections of each process of the load; None: one for each agent.
    """

    few: int
    many: int
    steps: int
    updates: int
    batches: int
    seconds: float
    heartbeat: float
    connections: int | None

    @property
    def pace(self) -> str:
        """How often an agent is heard, in words."""
        return "a heartbeat " + ("a second" if self.heartbeat == 1 else f"in {self.heartbeat:g} s")


class Plane:
    """A control plane in a process of its own, which can be killed and started again."""

    def __init__(self, directory: Path, heartbeat: float) -> None:
        self._directory = directory
        self._heartbeat = heartbeat
        self.port = free_port()
        self.process = self._start()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        return self.process.pid

    def _start(self) -> Process:
        return serve(
            self.port, self._directory, log_level="warning", heartbeat_interval=self._heartbeat
        )

    def restart(self) -> None:
        self.process.kill()
        self.process = self._start()

    def ready(self) -> None:
        with grpc.insecure_channel(self.address, options=client_options()) as channel:
            grpc.channel_ready_future(channel).result(60)

    @contextmanager
    def stub(self) -> Iterator[ControlPlaneServiceStub]:
        with grpc.insecure_channel(self.address, options=client_options()) as channel:
            yield ControlPlaneServiceStub(channel)


@contextmanager
def plane_in(directory: Path, heartbeat: float) -> Iterator[Plane]:
    """Runs a control plane while the block runs; the directory is made."""
    directory.mkdir()
    plane = Plane(directory, heartbeat)
    try:
        plane.ready()
        yield plane
    finally:
        plane.process.end()


def light_jobs(
    plan: Plan, plane: Plane, jobs: int, prefix: str, *, first: int = 0, processes: int = 1
) -> SimulateOptions:
    """The options of jobs that are the load."""
    return SimulateOptions(
        control_plane=plane.address,
        jobs=jobs,
        first=first,
        prefix=prefix,
        labels=LABELS,
        step_time=STEP_SECONDS,
        report_every=plan.heartbeat,
        metrics=("loss",),
        seed=1,
        processes=processes,
        connections=plan.connections,
    )
