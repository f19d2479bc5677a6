"""python -m tests.bench.scale: one control plane under thousands of agents.

Every agent is a light job (trainer_agent.simulate), in other processes than the control plane:
the agent's own code, with a connection of its own unless --connections says otherwise, and one
heartbeat with one sample a second. Prints one table and writes out/bench-scale.json.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc
import uvloop
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from grpc_runtime.logging import configure_logging
from grpc_runtime.options import client_options
from midcourse.control.v1 import control_pb2 as api
from midcourse.control.v1.control_pb2_grpc import ControlPlaneServiceStub
from tests.bench.report import Row, percentile, show
from tests.bench.scale_floor import floor
from tests.bench.scale_load import Cost, Load, cpu_seconds, load, rss_kilobytes
from tests.support.processes import Process, free_port, serve, until
from trainer_agent.simulate import LightJobs
from trainer_agent.simulate.options import SimulateOptions

PROBE = "probe"
LABELS = {"load": "bench"}
SELECTOR = "load=bench"
HEARTBEAT_SECONDS = 1.0
# The step that a batch waits for, so that it is no part worth mentioning of what is measured.
STEP_SECONDS = 0.01
LATENCY_SECONDS = 120.0
"""A part that takes latencies ends after so long, with fewer of them."""
FEW = 1_000
"""Up to so many agents, the goals for few hold."""
REST_SECONDS = 3.0
"""For what a part leaves behind, such as acknowledgements, to be done with."""


@dataclass(frozen=True)
class Plan:
    """What is measured, and for how long.

    Attributes:
        few: Agents of the first part.
        many: Agents of the second part.
        updates: Updates whose latency is taken, in each part.
        batches: Selector updates, in each part.
        seconds: How long the second part is watched, in seconds.
        processes: Processes that the load is split over.
        connections: Connections of each of them; None: one for each agent.
    """

    few: int
    many: int
    updates: int
    batches: int
    seconds: float
    processes: int
    connections: int | None


class Plane:
    """A control plane in a process of its own, which can be killed and started again."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.port = free_port()
        self.process = self._start()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def _start(self) -> Process:
        return serve(
            self.port, self._directory, log_level="warning", heartbeat_interval=HEARTBEAT_SECONDS
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


def options(plan: Plan, plane: Plane, jobs: int, prefix: str, *, first: int = 0) -> SimulateOptions:
    return SimulateOptions(
        control_plane=plane.address,
        jobs=jobs,
        first=first,
        prefix=prefix,
        labels=LABELS,
        step_time=STEP_SECONDS,
        metrics=("loss",),
        seed=1,
        processes=min(plan.processes, max(1, jobs // 500)),
        connections=plan.connections,
    )


# ------------------------------------------------------------------------------- what is measured


async def update_latencies(plane: Plane, count: int) -> list[float]:
    """Milliseconds from the call to the boundary that applied it, of one job with 1 ms steps."""
    taken: list[float] = []
    metrics = ("loss",)
    until_then = time.monotonic() + LATENCY_SECONDS
    async with LightJobs(plane.address, prefix=PROBE, step_time=0.001, metrics=metrics) as jobs:
        job = jobs[0]
        async with grpc.aio.insecure_channel(plane.address, options=client_options()) as channel:
            stub = ControlPlaneServiceStub(channel)
            warm = max(10, count // 10)
            for number in range(count + warm):
                if time.monotonic() > until_then and len(taken) > warm:
                    break
                request = api.UpdateParametersRequest(job=f"jobs/{job.job_id}")
                change = request.spec.changes.add(parameter="learning_rate")
                change.set.value.number = 1e-3 if number % 2 else 2e-3
                called = time.time_ns()
                answer = await stub.UpdateParameters(request, timeout=30)
                outcome = await job.outcome(answer.update.revision)
                assert outcome.HasField("applied"), outcome
                if number >= warm:
                    taken.append((outcome.applied.apply_time.ToNanoseconds() - called) / 1e6)
                await asyncio.sleep(0.005)  # one at a time, spread over the agents' heartbeats
    return taken


def batch_milliseconds(plane: Plane, jobs: int, count: int) -> list[float]:
    """Milliseconds from the call to the last job's being known to have applied it."""
    taken = []
    with plane.stub() as stub:
        for number in range(count):
            request = api.BatchUpdateParametersRequest(selector=SELECTOR)
            change = request.spec.changes.add(parameter="weight_decay")
            change.set.value.number = 0.01 * (number + 2)
            began = time.perf_counter()
            batch = stub.BatchUpdateParameters(request, timeout=60).batch
            applied = 0
            for seen in stub.WatchBatch(api.WatchBatchRequest(name=batch.name), timeout=60):
                applied = seen.batch.progress.applied
                if applied >= jobs:
                    break
            taken.append((time.perf_counter() - began) * 1e3)
            assert applied == jobs, f"{applied} of {jobs} applied"
    return taken


def all_heard(plane: Plane, jobs: int, seconds: float) -> bool:
    """Whether the control plane has heard of every agent within the last seconds."""
    heard, token = 0, ""
    with plane.stub() as stub:
        while True:
            page = stub.ListJobs(
                api.ListJobsRequest(selector=SELECTOR, page_size=1000, page_token=token)
            )
            now = time.time()
            heard += sum(
                now - job.session.last_seen_time.ToNanoseconds() / 1e9 < seconds
                and job.session.connected
                and not job.dropped_samples
                for job in page.jobs
            )
            token = page.next_page_token
            if not token:
                return heard == jobs


# ------------------------------------------------------------------------------------- the parts


class Bench:
    """The parts one after the other, with a bar for what takes long."""

    def __init__(self, plan: Plan, directory: Path, progress: Progress) -> None:
        self._plan = plan
        self._directory = directory
        self._progress = progress
        self.rows: list[Row] = []

    def run(self) -> None:
        self._few()
        self._many()

    def _row(self, what: str, unit: str, ours: float, goal: float, note: str = "") -> None:
        self.rows.append(Row(what, unit, None, ours, goal, note))

    def _ramp(self, running: Load, jobs: int) -> float:
        """Waits until all have a session; returns how long that took, in seconds."""
        task = self._progress.add_task(f"ramp to {jobs:,} agents", total=jobs)
        began = time.monotonic()

        def connected() -> bool:
            self._progress.update(task, completed=running.totals.connected)
            return running.totals.connected >= jobs

        running.wait(lambda _: connected(), "all agents connected", 120 + jobs / 20)
        return time.monotonic() - began

    def _latency(self, plane: Plane, jobs: int) -> None:
        what, goal = f"with {jobs:,} agents", 25.0 if jobs <= FEW else 100.0
        task = self._progress.add_task(f"updates, {what}", total=None)
        taken = uvloop.run(update_latencies(plane, self._plan.updates))
        self._progress.update(task, total=1, completed=1)
        note = f"of {len(taken)}"
        self._row(f"update latency {what}, p50", "ms", percentile(taken, 50), goal, note)
        self._row(f"update latency {what}, p99", "ms", percentile(taken, 99), goal, note)

    def _batch(self, plane: Plane, running: Load, jobs: int) -> None:
        what, goal = f"one update of {jobs:,} jobs", 300.0 if jobs <= FEW else 3_000.0
        task = self._progress.add_task(what, total=None)
        pids = plane.process.pid, running.pids
        rest, cost = Cost(), Cost()
        with rest.measured(*pids):
            time.sleep(REST_SECONDS)
        batch_milliseconds(plane, jobs, 1)  # the first compiles statements
        time.sleep(REST_SECONDS)
        with cost.measured(*pids):
            taken = batch_milliseconds(plane, jobs, self._plan.batches)
            time.sleep(REST_SECONDS)
        self._progress.update(task, total=1, completed=1)
        least, bare = self._floor(jobs)
        self.rows.append(
            Row(
                *(f"{what}, median", "ms", least, percentile(taken, 50), goal),
                "floor: a message and an answer on each of as many bare streams, then one commit",
            )
        )
        beyond, each = cost.beyond(rest), 1e6 / jobs / self._plan.batches
        for name, ours, base in (
            ("server", beyond.server * each, bare.server * each),
            ("load", beyond.load * each, bare.load * each),
        ):
            self.rows.append(
                Row(
                    *(f"{what}, processor time of the {name} for each", "µs", base),
                    ours if ours > 0 else None,
                    note="beyond that of the heartbeats meanwhile",
                    failure="" if ours > 0 else "the agents fell behind with their heartbeats",
                )
            )
        beat = 1e6 * rest.server / rest.wall / jobs * HEARTBEAT_SECONDS
        self.rows.append(Row("a heartbeat, processor time of the server", "µs", None, beat))

    def _floor(self, jobs: int) -> tuple[float, Cost]:
        """The median of the floor in milliseconds, and what it costs, for as many updates."""
        directory = self._directory / f"floor-{jobs}"
        directory.mkdir()
        task = self._progress.add_task("its floor", total=None)
        cost = Cost()
        with floor(jobs, directory) as bare:
            bare.update()
            with cost.measured(bare.server, [bare.client]):
                taken = [bare.update() for _ in range(self._plan.batches)]
        self._progress.update(task, total=1, completed=1)
        return percentile(taken, 50), cost

    def _few(self) -> None:
        jobs = self._plan.few
        directory = self._directory / "few"
        directory.mkdir()
        plane = Plane(directory)
        try:
            plane.ready()
            with load(options(self._plan, plane, jobs, "few")) as running:
                self._ramp(running, jobs)
                self._latency(plane, jobs)
                self._batch(plane, running, jobs)
                self._restart(plane, running, jobs)
        finally:
            plane.process.end()

    def _restart(self, plane: Plane, running: Load, jobs: int) -> None:
        task = self._progress.add_task("kill -9 and start", total=None)
        before = running.totals.sessions
        began = time.monotonic()
        plane.restart()
        running.wait(
            lambda totals: totals.connected >= jobs and totals.sessions >= before + jobs,
            "all agents back",
            60,
        )
        self._row(
            f"kill -9 and start, until {jobs:,} agents are back",
            "s",
            time.monotonic() - began,
            5.0,
            "told twice a second; with the start of the process",
        )
        until(lambda: all_heard(plane, jobs, 10.0), "all heard")
        self._progress.update(task, total=1, completed=1)

    def _many(self) -> None:
        jobs, plan = self._plan.many, self._plan
        directory = self._directory / "many"
        directory.mkdir()
        plane = Plane(directory)
        try:
            plane.ready()
            pid = plane.process.pid
            # Between two counts of agents: what the server takes for itself is no part of it.
            some = max(1, jobs // 3)
            with load(options(plan, plane, some, "many")) as running:
                ramp = self._ramp(running, some)
                time.sleep(REST_SECONDS)
                before = rss_kilobytes(pid)
                running.add(options(plan, plane, jobs - some, "many", first=some))
                ramp += self._ramp(running, jobs)
                self._row(f"ramp to {jobs:,} agents", "s", ramp, jobs / 50)
                task = self._progress.add_task(
                    f"{jobs:,} agents at one heartbeat a second", total=plan.seconds
                )
                sessions, cpu, began = running.totals.sessions, cpu_seconds(pid), time.monotonic()
                while (passed := time.monotonic() - began) < plan.seconds:
                    self._progress.update(task, completed=passed)
                    time.sleep(0.5)
                self._progress.update(task, completed=plan.seconds)
                used = (cpu_seconds(pid) - cpu) / passed
                self._row(
                    f"memory of the server for each agent, from {some:,} to {jobs:,}",
                    "kB",
                    (rss_kilobytes(pid) - before) / (jobs - some),
                    60.0,
                    f"{rss_kilobytes(pid) / 1e3:,.0f} MB in all",
                )
                self._row("processor of the server", "cores", used, 1.0)
                lost = jobs - running.totals.connected + running.totals.sessions - sessions
                self._row("agents dropped", "", lost, 0)
                heard = all_heard(plane, jobs, 5 * HEARTBEAT_SECONDS)
                self._row(
                    "agents unheard for five intervals, or with dropped samples",
                    "",
                    0 if heard else 1,
                    0,
                    "0: none",
                )
                self._latency(plane, jobs)
                self._batch(plane, running, jobs)
        finally:
            plane.process.end()


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench.scale",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--agents", type=int, default=10_000, help="default: 10000")
    parser.add_argument("--few", type=int, default=1_000, help="of the first part (default: 1000)")
    parser.add_argument("--updates", type=int, default=500, help="for latencies (default: 500)")
    parser.add_argument("--batches", type=int, default=3, help="selector updates (default: 3)")
    parser.add_argument("--seconds", type=float, default=60, help="under full load (default: 60)")
    parser.add_argument("--processes", type=int, default=4, help="of the load (default: 4)")
    parser.add_argument(
        "--connections",
        type=int,
        default=None,
        help="connections of each process (default: one for each agent, as real agents have)",
    )
    parser.add_argument("--output", type=Path, default=Path("out/bench-scale.json"))
    asked = parser.parse_args()
    configure_logging(level="error", log_format="auto")
    plan = Plan(
        few=asked.few,
        many=asked.agents,
        updates=asked.updates,
        batches=asked.batches,
        seconds=asked.seconds,
        processes=asked.processes,
        connections=asked.connections,
    )
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    console = Console()
    console.print(f"on {os.cpu_count()} processors, load {os.getloadavg()[0]:.1f} before the start")
    with (
        tempfile.TemporaryDirectory(prefix="midcourse-scale-") as directory,
        Progress(*columns, console=console) as progress,
    ):
        bench = Bench(plan, Path(directory), progress)
        try:
            bench.run()
        finally:
            show(bench.rows, asked.output)


if __name__ == "__main__":
    main()
